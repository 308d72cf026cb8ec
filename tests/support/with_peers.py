"""with_peers.py SCRIPT [ARGUMENT ...]: with timm and torchvision from a folder of their own.

torchvision's wheel is one for CUDA, whose library a PyTorch for CPUs cannot load; importing it then
needs two declared ops that are never called. The folder is on PYTHONPATH.
"""

import runpy
import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
