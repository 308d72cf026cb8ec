"""``python -m torch_ws.inspect``: the command, its reading in a process of its own."""

import signal
import sys

from .command import fail, parse, run
from .limits import in_a_process

# names may have what its encoding has not
sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # only replacements lack it
args = parse(sys.argv[1:])
status = in_a_process(lambda: run(args))
if status < 0:
    died = signal.Signals(-status).name
    files = args.checkpoint if args.compare is None else f"{args.checkpoint} or {args.compare}"
    status = fail(f"{files}: cannot be read: its reader was ended by {died}")
sys.exit(status)
