"""The statistics of a checkpoint's weights: ``python -m torch_ws.inspect CHECKPOINT``."""

import sys

if __name__ == "inspect":  # the folder above is on sys.path, and this one in Python's own's place
    print(
        f"{__file__} hides Python's own inspect from what runs in the folder above; "
        "from another folder, run python -m torch_ws.inspect",
        file=sys.stderr,
    )
    sys.exit(2)

from .layers import channel_statistics

__all__ = ["channel_statistics"]
