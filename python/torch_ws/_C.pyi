"""The types of the pybind11 module; what its functions do is in their docstrings."""

from typing import Any, Literal, Protocol, TypedDict

_Capability = Literal["avx512", "avx2", "default"]
_Dtype = Literal["float64", "float32", "float16", "bfloat16"]

class _Array(Protocol):
    """An array of NumPy, PyTorch, CuPy, JAX or whatever else speaks DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class _Cuda(TypedDict):
    toolkit: str
    architectures: str

class _BuildInfo(TypedDict):
    compiler: str
    pybind11: str
    cuda: _Cuda | None

class _LaunchPlan(TypedDict):
    name: str
    access: str
    form: str
    max_cols: int
    team: int
    elements: int
    team_rows: int
    vector: int
    threads: int
    rows: int
    resident: int
    chunks: int
    blocks: int

def cpu_capability() -> _Capability: ...
def set_cpu_capability(name: _Capability) -> None: ...
def build_info() -> _BuildInfo: ...
def launch_plan(
    rows: int,
    cols: int,
    *,
    direction: Literal["forward", "backward"] = "forward",
    weight: _Dtype = "float32",
    out: _Dtype | Literal[""] = "",
    cluster: Literal[1, 2, 4, 8, 16] = 16,
) -> _LaunchPlan: ...
def forward(
    weight: _Array,
    out: _Array,
    gain: _Array | None = None,
    shift: _Array | None = None,
    *,
    channel_dim: int = 0,
    eps: float = 1e-5,
    eps_mode: int = 0,
    correction: int = 0,
    center: bool = True,
    scale: float = 1.0,
    stream: int = 0,
) -> None: ...
def backward(
    grad: _Array,
    weight: _Array,
    grad_weight: _Array,
    gain: _Array | None = None,
    grad_gain: _Array | None = None,
    grad_shift: _Array | None = None,
    *,
    channel_dim: int = 0,
    eps: float = 1e-5,
    eps_mode: int = 0,
    correction: int = 0,
    center: bool = True,
    scale: float = 1.0,
    stream: int = 0,
) -> None: ...
