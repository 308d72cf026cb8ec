"""``python -m torch_ws.info``: prints [`torch_ws.info`][]."""

from torch_ws import info

if __name__ == "__main__":
    for key, value in info().items():
        print(f"{key:20}{value}")
