"""Sharded weights: what the ops of ``torch.ops.ws`` do with DTensors.

A shard of whole output channels is standardized where it is, without communication, and so is a
replicated weight. Along a mesh dimension that cuts through the channels the weight is replicated
first. Results are placed as the weight then is; gains, shifts and gradients are brought to fit it.

Importing this module registers the rules. ``import torch_ws`` does it only where
torch.distributed.tensor is imported already, which takes far longer than torch_ws itself.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..core.autograd import library

_OPS = ("standardize", "forward", "backward", "backward_affine")
_LIST_OPS = ("standardize_many", "forward_many", "forward_into", "backward_many")


class _Sharding:
    """How a weight is sharded while it is standardized, and its gradient and vectors with it."""

    def __init__(self, weight: DTensor, channel_dim: int):
        self.weight = weight
        whole_channels = Shard(channel_dim % weight.dim())
        self.of_weight = [p if p == whole_channels else Replicate() for p in weight.placements]
        self.of_vectors = [p if p.is_replicate() else Shard(0) for p in self.of_weight]
        self.channels = weight.shape[channel_dim]

    def local(self, tensor, name):
        """This rank's part of the weight, a tensor of its shape, its gain or its shift."""
        if tensor is None:
            return None
        if not isinstance(tensor, DTensor):
            raise TypeError(f"{name} must be a DTensor, as the weight is; got a plain tensor")
        placements = self.of_vectors if tensor.dim() == 1 else self.of_weight
        if name == "out" and list(tensor.placements) != placements:
            raise ValueError(f"out must be placed as {placements}, got {tensor.placements}")
        # PyTorch 2.10 cannot redistribute what requires a gradient where gradients are disabled.
        tensor = tensor.detach()
        return tensor.redistribute(self.weight.device_mesh, placements).to_local()

    def whole(self, result):
        """The DTensor of which `result` is this rank's part."""
        placements, shape, stride = self.of_weight, self.weight.shape, self.weight.stride()
        if result.dim() == 1:
            placements, shape, stride = self.of_vectors, torch.Size([self.channels]), (1,)
        mesh = self.weight.device_mesh
        return DTensor.from_local(result, mesh, placements, shape=shape, stride=stride)


class _Plain:
    """The same for an ordinary tensor among the DTensors of a list."""

    def local(self, tensor, name):
        if isinstance(tensor, DTensor):
            raise TypeError(f"{name} must be a plain tensor, as the weight is; got a DTensor")
        return tensor

    def whole(self, result):
        return result


def _sharding(weight, channel_dim):
    return _Sharding(weight, channel_dim) if isinstance(weight, DTensor) else _Plain()


@torch.no_grad()
def _run(cls, op, types, args, kwargs=None):
    """Runs an op on each rank's part of its leading arguments, tensors or lists of them."""
    kwargs = kwargs or {}
    name = op.overloadpacket.__name__
    names: tuple[str, ...]
    names = ("grad", "weight", "gain") if "backward" in name else ("weight", "gain", "shift")
    names = ("out", *names) if name == "forward_into" else names
    many = name in _LIST_OPS
    leading, others = args[: len(names)], args[len(names) :]
    columns = leading if many else [[tensor] for tensor in leading]
    channel_dims = others[0] if many else [others[0] if others else kwargs.get("channel_dim", 0)]
    weights = columns[names.index("weight")]
    shardings = [_sharding(w, dim) for w, dim in zip(weights, channel_dims, strict=True)]
    local = [
        [sharding.local(tensor, label) for sharding, tensor in zip(shardings, column, strict=True)]
        for label, column in zip(names, columns, strict=False)  # ws::standardize omits None
    ]
    results = op(*(local if many else [only for [only] in local]), *others, **kwargs)
    if results is None:
        return None
    if isinstance(results, torch.Tensor):
        return shardings[0].whole(results)
    # a weight's results are as far apart as there are weights
    wholes = [shardings[i % len(shardings)].whole(result) for i, result in enumerate(results)]
    return wholes if many else tuple(wholes)


for _name in (*_OPS, *_LIST_OPS):
    torch.library.register_torch_dispatch(f"ws::{_name}", DTensor, _run, lib=library)
