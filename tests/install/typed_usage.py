"""What a user's type checker makes of torch_ws. Never run: mypy reads it in `make check`."""

from __future__ import annotations

import torch
import torch_ws
from torch import Tensor, nn
from torch_ws.distributed import standardize_before_gather
from typing_extensions import assert_type


class Network(nn.Sequential):
    """A user's model, whose type the functions on models keep."""


model = Network(nn.Conv2d(3, 8, 3))
assert_type(torch_ws.convert(model, "timm", skip=(nn.Linear, "0"), gain=True), Network)
assert_type(torch_ws.convert(model, skip=lambda name, module: name == "0"), Network)
assert_type(torch_ws.adopt(model), Network)
assert_type(torch_ws.parametrize(model, formula=torch_ws.Formula(eps_mode="var")), Network)
assert_type(torch_ws.fold(model), Network)
assert_type(torch_ws.weight_similarity(model, model, layers=("0",)), list[float])
assert_type(standardize_before_gather(model), Network)
with torch_ws.hold(model):
    torch_ws.group(model, bucket_mb=25).remove()

layer = torch_ws.WSConv2d(3, 8, 3, padding="same", formula="nfnet", device="cpu", gain=True)
assert_type(torch_ws.fold(layer), nn.Module)  # another class than it was: nn.Conv2d
assert_type(layer.standardized_weight(), Tensor)
assert_type(layer.gain, nn.Parameter | None)
assert_type(layer.train(), torch_ws.WSConv2d)

weight = torch.randn(4, 9)
assert_type(torch_ws.standardize(weight, dtype=torch.bfloat16), Tensor)
assert_type(torch_ws.reference.standardize(weight, formula="bit"), Tensor)
assert_type(torch_ws.standardize_many([weight], formula=["paper"]), list[Tensor])
torch_ws._C.forward(weight, weight.numpy(), gain=None)
assert_type(torch_ws._C.launch_plan(4, 9)["blocks"], int)
assert_type(torch_ws.formulas["paper"].eps, float)
state = torch_ws.checkpoints.from_timm(model.state_dict())
assert_type(state, dict[str, Tensor])

# Each line is wrong in the way that the ignored error names; mypy reports an ignore without one.
torch_ws.standardize(weight, formula="papers")  # type: ignore[arg-type]
torch_ws.Formula(eps_mode="squared", scale="fan")  # type: ignore[arg-type]
torch_ws.WSLinear(3, 4, formula="nfnets")  # type: ignore[arg-type]
torch_ws.convert(weight)  # type: ignore[type-var]
torch_ws._C.launch_plan(4, 9, direction="up")  # type: ignore[arg-type]
torch_ws._C.forward(weight, [1.0])  # type: ignore[arg-type]
