"""Training on several devices: rules for sharded weights, and smaller all-gathers for FSDP2.

DistributedDataParallel and ``fully_shard`` need nothing from here. ``import torch_ws.distributed``
teaches the ops DTensors, for tensor parallelism.
"""

from . import dtensor as dtensor
from .gather import standardize_before_gather

__all__ = ["standardize_before_gather"]
