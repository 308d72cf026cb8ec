"""The build stage: compiles into the source tree, and sees that the kernels load."""

import subprocess
import sys


def main() -> int:
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], check=True)
    import torch_ws  # it is there now

    for key, value in torch_ws.info().items():
        print(f"{key:20}{value}")
    return 0 if torch_ws.info()["cuda_loaded"] else 1


if __name__ == "__main__":
    sys.exit(main())
