"""PyTorch's private names, each with the reason why no public one does. No other file has one.

But for those in EVERYWHERE, private by their spelling alone: what authors of nn.Module's subclasses
read and override, a state dict's metadata, and the version counter, which all of the ecosystem
reads. Functions around these would cost calls where calls count. A test holds the other files to
that, and each name to being there; one that a later PyTorch lacks is an error, not a guess.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils import _python_dispatch, _pytree

EVERYWHERE = {"_parameters", "_buffers", "_modules", "_apply", "_conv_forward", "_version"}
EVERYWHERE |= {"_save_to_state_dict", "_load_from_state_dict", "_metadata"}

# The public is_autocast_enabled and is_tracing take several times as long; every call asks both.
any_autocast = torch._C._is_any_autocast_enabled
is_tracing = torch._C._is_tracing


def storage_users(tensor: torch.Tensor) -> int:
    """How many have the memory of `tensor`, itself included; nothing public counts tensors.

    Besides them those who refer to the storage in Python, where all share one object.
    """
    storage = tensor.untyped_storage()
    tensors = torch._C._storage_Use_Count(storage._cdata) - 1  # without `storage` itself
    return tensors + sys.getrefcount(storage) - _REFERENCES


def _references(tensor):
    storage = tensor.untyped_storage()
    return sys.getrefcount(storage)


# What a storage that nobody refers to in Python has from where it is counted.
_REFERENCES = _references(torch.empty(0, device="cpu"))


def in_dispatch_mode() -> bool:
    """True where operations go through a TorchDispatchMode, which may record or replace them."""
    return torch._C._len_torch_dispatch_stack() > 0


def references(tensors, i) -> tuple[int, int, int]:
    """How many refer to the tensor tensors[i] in Python, in C++, and how many have its memory.

    To be compared with those of a tensor that nobody else knows: Python versions count apart.
    """
    count = sys.getrefcount(tensors[i])
    return count, tensors[i]._use_count(), storage_users(tensors[i])


def accumulates(node: torch.autograd.graph.Node) -> bool:
    """Inside a backward pass: True if it leaves a gradient in .grad of the leaf of that node.

    False if the pass is torch.autograd.grad's, which gives it to the caller.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # "... a leaf ... currently running autograd.grad()"
        return False


def in_backward() -> bool:
    """True inside a backward pass, where activation checkpointing calls layers a second time."""
    return torch._C._current_graph_task_id() != -1


def in_compiled_backward() -> bool:
    """True in a backward pass of compiled autograd, also where that runs a node's code as it is."""
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return module is not None and module.in_compiled_autograd_region


def wants_small_nodes() -> bool:
    """True where a node of the graph for several parameters does harm: nothing public tells of it.

    In the forward pass of a DistributedDataParallel, which sends gradients while others are
    computed; and before a backward pass of compiled autograd, whose sums have no missing gradients.
    """
    if nn.parallel.DistributedDataParallel._active_ddp_module is not None:
        return True
    module = sys.modules.get("torch._dynamo.compiled_autograd")
    return module is not None and module.compiled_autograd_enabled


def saved_tensors_hooks():
    """The innermost saved-tensor hooks, by which a layer can tell that it is checkpointed."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


# No public function tells whether a torch.func transform runs.
in_transform = torch._C._are_functorch_transforms_active


def needs_reference() -> bool:
    """True inside a torch.func transform or forward-mode AD, which nothing public tells."""
    return in_transform() or forward_ad._current_level >= 0


def direct(op: torch._ops.OpOverloadPacket) -> Callable:
    """The op without the Python frame that torch.ops puts before every call: some 1 microsecond."""
    return op.default._op


def direct_apply(function: type[torch.autograd.Function]) -> Callable:
    """Function.apply without its part for torch.func transforms, 2 of 9 microseconds in Python."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]  # of _C's base


def after_backward(callback: Callable[[], None]) -> None:
    """Calls back at the end of the backward pass that runs; hooks know no such moment."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


# Tensor subclasses whose operations give plain tensors have no public way to say so.
no_torch_function: Callable = torch._C._disabled_torch_function_impl
# What torch.optim, clip_grad_norm_ and GradScaler do to lists of gradients and of steps.
foreach_add = torch._foreach_add
foreach_add_ = torch._foreach_add_
foreach_mul = torch.ops.aten._foreach_mul_
foreach_div = torch.ops.aten._foreach_div_
foreach_zero = torch.ops.aten._foreach_zero_
foreach_norm = torch.ops.aten._foreach_norm
foreach_unscale = torch.ops.aten._amp_foreach_non_finite_check_and_unscale_
# What finds the tensors among an operation's arguments.
tree_map_only = _pytree.tree_map_only


def new_wrapper(cls: type[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """A tensor of `cls` without memory, whose operations cls.__torch_dispatch__ carries out."""
    size, stride = like.size(), like.stride()
    return torch.Tensor._make_wrapper_subclass(
        cls, size, strides=stride, dtype=like.dtype, device=like.device
    )


# A tensor's hooks on gradients: nothing public lists them.
gradient_hooks = attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")

# What DTensors are among others; there is no public question for it.
is_traceable_wrapper_subclass = _python_dispatch.is_traceable_wrapper_subclass

# Transposed convolutions' padding for an `output_size`; their forward calls it, and has no other.
output_padding: Callable[..., list[int]] = nn.ConvTranspose2d._output_padding
# The class that torch.nn.utils.parametrizations.weight_norm registers, by which it is known.
WEIGHT_NORM = "torch.nn.utils.parametrizations._WeightNorm"


def set_padding(convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d, padding: tuple[int, ...]) -> None:
    """Sets `padding`, which torch.nn keeps a second time, reversed, for its padding modes."""
    convolution.padding = padding
    convolution._reversed_padding_repeated_twice = [p for p in padding[::-1] for _ in range(2)]


# A module's hooks by key: nothing public lists those before its forward, or removes one of those
# before it loads a state dict without its handle.
forward_pre_hooks = attrgetter("_forward_pre_hooks")
loading_hooks = attrgetter("_load_state_dict_pre_hooks")


def original_of(model: nn.Module) -> nn.Module | None:
    """What torch.compile made `model` of; None if it made it not, which nothing public tells."""
    return model._modules.get("_orig_mod")


def is_compiled(module: nn.Module) -> bool:
    """True also after module.compile(), which leaves nothing public either."""
    return original_of(module) is not None or module._compiled_call_impl is not None


def gather_with(optimizer: torch.optim.Optimizer, gather: Callable | None) -> Callable:
    """Has a step of SGD, Adam or AdamW gather a group's parameters by `gather`; None: by its own.

    Returns the optimizer's own. No hook sees what a step works on, or may take something from it.
    """
    if gather is None:
        optimizer.__dict__.pop("_init_group", None)
    else:
        optimizer.__dict__["_init_group"] = gather
    cls: Any = type(optimizer)
    return functools.partial(cls._init_group, optimizer)


def hook_first(optimizer: torch.optim.Optimizer, hook: Callable):
    """register_step_post_hook, but before the hooks that are there: they are to see new weights."""
    handle = optimizer.register_step_post_hook(hook)
    hooks: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict
    hooks.move_to_end(handle.id, last=False)
    return handle


def is_compiled_function(function: Callable) -> bool:
    """True for what torch.compile has made of a function; it leaves nothing public."""
    return hasattr(function, "_torchdynamo_inline")


def called_by_compiled() -> bool:
    """For a function that torch.compiler.disable keeps eager: True if what calls it may not be.

    Code that was compiled before asks nobody, and no public function tells outside of a trace.
    """
    frame: FrameType | None = sys._getframe(1)
    disabled = 0
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch._dynamo.eval_frame":
            if frame.f_code.co_name == "compile_wrapper":
                return True
            disabled += 1
            if disabled == 2:  # the first is the asking function's own
                return False
        frame = frame.f_back
    return False


def local_tensor(tensor):
    """A DTensor's own local tensor, where to_local() gives a view of it, or a part of a graph.

    Of others the tensor itself: to ask what it is would import torch.distributed.tensor.
    """
    return getattr(tensor, "_local_tensor", tensor)


def with_local_tensor(tensor: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """The DTensor with another local tensor, which nothing public gives it; of others `local`."""
    if not hasattr(tensor, "_local_tensor"):
        return local
    tensor._local_tensor = local
    return tensor


class ShardedParameter:
    """A parameter as FSDP2 keeps it: whose it is and how it is sharded is told to nobody."""

    def __init__(self, group, record):
        info = record._module_info
        self._record = record
        self.layer, self.name = info.module, info.param_name
        self.shared_with = list(zip(info.shared_modules, info.shared_param_names, strict=True))
        self.placement = record.fsdp_placement
        self.tensor_parallel = record.is_dtensor
        self.offloaded = record.offload_to_cpu
        self.resharded_to_some = group._use_post_forward_mesh

    @property
    def parameter(self) -> nn.Parameter:
        """A DTensor; another one after .to() or load_state_dict(assign=True)."""
        return self._record.sharded_param

    def make_local(self, cls: type[torch.Tensor]) -> None:
        """Gives it the extensions of `cls` to the all-gather, which FSDP2 looks for only once."""
        with_local_tensor(self.parameter, local_tensor(self.parameter).as_subclass(cls))
        self._record._init_extensions()


def sharded_parameters(module: torch.distributed.fsdp.FSDPModule) -> Iterator[ShardedParameter]:
    """Those that `fully_shard(module)` made."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # PyTorch before 2.12: one
    for group in [state._fsdp_param_group] if groups is None else groups:
        for record in group.fsdp_params if group is not None else ():
            yield ShardedParameter(group, record)
