"""``python -m bench [COMMAND] [OPTIONS]``: one module for each command, each with a main(argv).

Without a command it times standardization itself; ``python -m bench --help`` has the options.
"""

import importlib
import sys

COMMANDS = ("standardize", "step")


def main(argv: list[str]) -> int:
    command = COMMANDS[0]
    if argv and argv[0] in COMMANDS:
        command, argv = argv[0], argv[1:]
    try:
        module = importlib.import_module(f"bench.{command}")
    except ImportError as error:
        print(f"python -m bench: error: {error}", file=sys.stderr)
        return 2
    return module.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
