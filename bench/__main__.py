"""``python -m bench [COMMAND] [OPTIONS]``: each command a folder with command.main(argv).

Without a command it times standardization itself; ``python -m bench --help`` has the options.
"""

import importlib
import sys

COMMANDS = {
    "standardize": "weights",
    "step": "step",
    "optimizer": "optimizer",
    "evidence": "evidence",
}  # the first is the default


def main(argv: list[str]) -> None:
    command = next(iter(COMMANDS))
    if argv and argv[0] in COMMANDS:
        command, argv = argv[0], argv[1:]
    try:
        module = importlib.import_module(f"bench.{COMMANDS[command]}.command")
    except ImportError as error:
        print(f"python -m bench: error: {error}", file=sys.stderr)
        sys.exit(2)
    module.main(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
