"""One workload in one dtype: make the tensors, check every provider, then time every direction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch._functorch.config
import torch_ws

from ..common import cuda_timing, timing
from ..common.errors import WRONG, reason_of
from ..common.run import Started
from ..common.timing import Call
from .calls import make_call
from .checks import Check, check
from .providers import OURS, Provider, Standardize
from .record import Row
from .workloads import Tensors, Workload, make_tensors, moved_bytes

DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "float16": (torch.float16, torch.float16),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float32:float16": (torch.float32, torch.float16),
    "float32:bfloat16": (torch.float32, torch.bfloat16),
}


@dataclass
class Session:
    """What all workloads of a run share."""

    providers: list[Provider]
    device: str
    seconds: float

    def __post_init__(self):
        self.capability = torch_ws.cpu_capability()
        if self.device == "cuda":
            # a captured backward reads what its forward saved at every replay
            torch._functorch.config.donated_buffer = False
        self.lowers_capability = any(provider.capability for provider in self.providers)

    def enter(self, provider: Provider) -> Callable[[], None]:
        """Sets the instruction set of torch_ws, where a run compares several."""
        if not (self.lowers_capability and provider.name.startswith(OURS)):
            return lambda: None
        capability = provider.capability or self.capability
        return lambda: torch_ws._C.set_cpu_capability(capability)

    @contextlib.contextmanager
    def keeping_capability(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self.lowers_capability:
                torch_ws._C.set_cpu_capability(self.capability)


def measure(
    session: Session,
    workload: Workload,
    dtype: str,
    directions: list[str],
    started: Started,
) -> Iterator[Row]:
    """Yields a row for each direction."""
    started(f"{workload.title}, {dtype}: checking")
    tensors = make_tensors(workload, *DTYPES[dtype], session.device)
    with session.keeping_capability():
        checked = _check_all(session, workload, dtype, tensors)
        for direction in directions:
            started(f"{workload.title}, {dtype}: {direction}")
            yield _time_all(session, workload, dtype, direction, tensors, checked)


@dataclass
class Checked:
    """The functions that passed their checks, and why others are left out; by provider."""

    functions: dict[str, Standardize] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def _check_all(session: Session, workload: Workload, dtype: str, tensors: Tensors) -> Checked:
    checked = Checked()
    for provider in session.providers:
        if provider.make is None:
            continue
        session.enter(provider)()
        try:
            function = provider.make(DTYPES[dtype][1])
            result = check(function, provider.formula, tensors)
        except Exception as error:  # whatever torch.compile, or a peer without this dtype, raises
            if provider.name.startswith(OURS):
                raise
            checked.skipped[provider.name] = reason_of(error)
            continue
        if result.passed:
            checked.functions[provider.name] = function
            checked.checks[provider.name] = result
        else:
            checked.skipped[provider.name] = f"{WRONG}, {result.verdict}"
    return checked


def _time_all(
    session: Session,
    workload: Workload,
    dtype: str,
    direction: str,
    tensors: Tensors,
    checked: Checked,
) -> Row:
    on_cuda = session.device == "cuda"
    timed = [p for p in session.providers if p.make is None or p.name in checked.functions]

    def call(provider: Provider, tensors: Tensors) -> Call:
        return make_call(
            provider,
            checked.functions.get(provider.name),
            tensors,
            direction,
            enter=session.enter(provider),
            retain_graph=on_cuda,
        )

    host_times, methods = {}, {}
    if on_cuda:
        nbytes = sum(weight.nbytes for weight in tensors.weights)
        sets = [tensors.clone() for _ in range(cuda_timing.sets_needed(nbytes))]
        calls = {p.name: [call(p, tensors) for tensors in sets] for p in timed}
        times, host_times, methods = cuda_timing.measure(calls, session.seconds)
    else:
        times = timing.measure({p.name: call(p, tensors) for p in timed}, session.seconds)
    return Row(
        workload,
        dtype,
        direction,
        moved_bytes(direction, workload.elements, *DTYPES[dtype]),
        times,
        checked.checks,
        checked.skipped,
        host_times,
        methods,
    )
