"""Builds the CUDA kernels for the CPU and launches them, on guarded memory.

Every tensor lies between guard bytes, with more of them in the gaps of its layout. They are all
ones, which is NaN in every dtype: what reads them is seen in the result, and what overwrites them
by their change. Results start as NaN too, so that each element has to be written.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from grids import DTYPES

from .structs import (
    MAX_CLUSTER,
    NO_LIMIT,
    POINTERS,
    STATES,
    STRUCTS,
    Formula,
    Plan,
    Record,
    Shape,
    Strides,
    Work,
    struct,
)

HERE = Path(__file__).parent
GUARD_BYTES = 256

# (weight, out), in the order of ws::Types: the last two are those of updates with float32 gradients
TYPES = [*DTYPES, (torch.float32, torch.float16), (torch.float32, torch.bfloat16)]
F32, BF16 = 1, 3
SUMS = (6, 7)


SMALL, LARGE = 1024, 32764  # bytes of a kernel's parameter


@dataclass(frozen=True)
class Layout:
    """Where the rows of a tensor lie; offsets and gaps in elements."""

    runs: bool = False  # row after row; or the first run of every row, then the second, ...
    offset: int = 0  # from an address that is a multiple of 16 bytes
    gap: int = 0  # after each row, or each run

    def strides(self, rows, cols, run):
        if self.runs:
            return Strides(run + self.gap, rows * (run + self.gap))
        return Strides(cols + self.gap, run)


DENSE = Layout()
VECTOR = Layout()  # of one value a row
PAPER = (1e-5, 1.0, 0, 0, True)  # Formula's fields


class Guarded:
    """A tensor [rows, cols] in that layout, shown as `view` [rows, cols / run, run]."""

    def __init__(self, rows, cols, run, dtype, layout, values=None):
        self.strides = layout.strides(rows, cols, run)
        sizes = (rows, cols // run, run)
        strides = (self.strides.row, self.strides.run, 1)
        elements = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        offset = GUARD_BYTES // dtype.itemsize + layout.offset
        total = 2 * GUARD_BYTES + (layout.offset + elements) * dtype.itemsize
        self.bytes = torch.full((total,), 0xFF, dtype=torch.uint8)
        self.place = (sizes, strides, offset)
        self.view = self.bytes.view(dtype).as_strided(*self.place)
        if values is not None:
            self.view.copy_(values.reshape(sizes))
        self.before = self.bytes.clone()

    def assert_unchanged(self):
        assert torch.equal(self.bytes, self.before), "an input was written to"

    def result(self):
        guards = self.bytes.clone()
        guards.view(self.view.dtype).as_strided(*self.place).zero_()
        before = self.before
        before.view(self.view.dtype).as_strided(*self.place).zero_()
        assert torch.equal(guards, before), "written outside of a result"
        return self.view.reshape(self.view.shape[0], -1)


def toolkit_includes():
    """A toolkit's include folders (nvcc's, CUDA_HOME's or that of NVIDIA's wheels), or None."""
    roots = [Path(os.environ["CUDA_HOME"])] if "CUDA_HOME" in os.environ else []
    if nvcc := shutil.which("nvcc"):  # it may be a script that starts another
        command = [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
        output = subprocess.run(command, capture_output=True, text=True).stderr
        roots += [Path(line.split("=")[1]) for line in output.splitlines() if "TOP=" in line]
    for folder in sys.path:
        roots += Path(folder).glob("nvidia/*/")
    for include in (root / "include" for root in roots):
        if (include / "cuda_fp16.h").exists():
            return [include, include / "cccl"]
    return None


def build(folder, includes):
    """Compiles the kernels into one library."""
    # -O0: compiling it is most of the tests' time
    flags = ["-std=c++17", "-O0", "-fPIC", "-fsanitize=alignment", "-Wno-unknown-pragmas"]
    flags += [f"-I{include}" for include in includes]
    compiler = os.environ.get("CXX", "g++")
    objects, jobs = [], []
    for source in sorted(HERE.glob("*.cpp")):
        objects.append(folder / f"{source.stem}.o")
        jobs.append(subprocess.Popen([compiler, *flags, "-c", source, "-o", objects[-1]]))
    assert all([job.wait() == 0 for job in jobs]), "the stand-in does not compile"
    library = folder / "libws_stand_in.so"
    # CXX may be a C compiler's name, which links no C++ library by itself
    subprocess.run([compiler, "-shared", "-o", library, *objects, "-lstdc++"], check=True)
    return ctypes.CDLL(str(library))


@dataclass
class Result:
    tensors: dict  # out, or grad_weight, grad_gain and grad_shift as far as asked for
    plan: Plan
    record: Record


class Weight:
    """One weight of a call: its guarded tensors, and the kernels' arguments for them."""

    def __init__(self, direction, types, inputs, outputs, formula=PAPER, run=None):
        self.args = STRUCTS[direction]()
        self.types = types
        self.in_place = []
        self.inputs, self.outputs = list(inputs), list(outputs)
        rows, cols = inputs["weight"][0].shape
        self.args.shape = Shape(rows, cols, run or cols)
        self.args.formula = Formula(*formula)
        self.guarded = {}
        for name, (values, layout) in inputs.items():
            if values is not None:
                n = values.numel() // rows
                self.guarded[name] = Guarded(
                    rows, n, min(n, run or n), values.dtype, layout, values
                )
        for name, (dtype, layout) in outputs.items():
            n = cols if layout is not VECTOR else 1
            self.guarded[name] = Guarded(rows, n, min(n, run or n), dtype, layout)
        for name, tensor in self.guarded.items():
            setattr(self.args, name, tensor.view.data_ptr())
            if hasattr(self.args, name + "_strides"):
                setattr(self.args, name + "_strides", tensor.strides)

    @classmethod
    def forward(cls, types, weight, gain=None, shift=None, layouts=(DENSE, DENSE), **options):
        inputs = {"weight": (weight, layouts[0]), "gain": (gain, VECTOR), "shift": (shift, VECTOR)}
        return cls("forward", types, inputs, {"out": (TYPES[types][1], layouts[1])}, **options)

    @classmethod
    def backward(
        cls, types, grad, weight, gain=None, affine=True, layouts=(DENSE, DENSE, DENSE), **options
    ):
        inputs = {
            "grad": (grad, layouts[0]),
            "weight": (weight, layouts[1]),
            "gain": (gain, VECTOR),
        }
        outputs = {"grad_weight": (TYPES[types][0], layouts[2])}
        if affine:
            outputs["grad_gain"] = outputs["grad_shift"] = (TYPES[types][0], VECTOR)
        return cls("backward", types, inputs, outputs, **options)

    @classmethod
    def norms(cls, types, grad, weight, gain=None, affine=True, layouts=(DENSE, DENSE), **options):
        inputs = {
            "grad": (grad, layouts[0]),
            "weight": (weight, layouts[1]),
            "gain": (gain, VECTOR),
        }
        results = ("squared_norm", "grad_gain", "grad_shift")[: 3 if affine else 1]
        outputs = {name: (TYPES[types][0], VECTOR) for name in results}
        return cls("norms", types, inputs, outputs, **options)

    @classmethod
    def update(
        cls,
        types,
        grad,
        weight,
        states=(),
        gain=None,
        new_gain=None,
        new_shift=None,
        rule=None,
        layouts=(DENSE, DENSE, DENSE, DENSE),
        **options,
    ):
        """Layouts: of grad, weight, out, all states. rule: Rule's fields, pointers as numbers."""
        tensors = {"grad": (grad, layouts[0]), "weight": (weight, layouts[1])}
        tensors |= {name: (t, layouts[3]) for name, t in zip(STATES, states, strict=False)}
        vectors = {"gain": gain, "new_gain": new_gain, "new_shift": new_shift}
        tensors |= {name: (vector, VECTOR) for name, vector in vectors.items()}
        self = cls("update", types, tensors, {"out": (TYPES[types][1], layouts[2])}, **options)
        self.in_place = [name for name in ("weight", *STATES) if name in self.guarded]
        self.numbers = []
        for name, value in (rule or {}).items():
            if name in POINTERS:
                self.numbers.append(torch.tensor([value], dtype=torch.float32))
                value = self.numbers[-1].data_ptr()
            setattr(self.args.rule, name, value)
        return self

    def results(self):
        for name in self.inputs:
            if name in self.guarded and name not in self.in_place:
                self.guarded[name].assert_unchanged()
        return {name: self.guarded[name].result() for name in (*self.outputs, *self.in_place)}


class Kernels:
    def __init__(self, library):
        self.library = library
        self.passes = {}
        for direction, args in STRUCTS.items():
            functions = struct(
                "Pass",
                ("bytes", c_int64),
                ("capacity", c_int64 * 2),
                ("plan", CFUNCTYPE(Plan, POINTER(args), c_int32, c_int32)),
                (
                    "run",
                    CFUNCTYPE(c_char_p, POINTER(Work), c_int64, c_int32, c_int32, POINTER(Record)),
                ),
            )
            self.passes[direction] = functions.in_dll(library, direction)
            # the fields above against those in C++
            assert ctypes.sizeof(args) == self.passes[direction].bytes, f"{args.__name__} changed"
        library.run_named.argtypes = (c_char_p, c_void_p, c_int32)
        library.run_named.restype = c_char_p

    def plan(self, direction, types, args, max_cluster=MAX_CLUSTER):
        return self.passes[direction].plan(byref(args), types, max_cluster)

    def capacity(self, direction, large):
        """How many weights share a launch."""
        return self.passes[direction].capacity[large]

    def tiers(self, direction, types, access, max_cluster=MAX_CLUSTER):
        """The launch table's entries of that access, as the plans of their shortest rows."""
        args = STRUCTS[direction]()
        # off by an element, and for single elements with gaps between the rows besides
        args.weight = 0 if access == "vector" else min(dtype.itemsize for dtype in TYPES[types])
        gap = access == "scalar"
        step = 16 // max(dtype.itemsize for dtype in TYPES[types]) if access == "vector" else 1
        plans = []
        cols = 16 if access == "vector" else 1
        while not plans or plans[-1].max_cols != NO_LIMIT:
            # more rows than those for which teams are made larger
            args.shape = Shape(1000, cols, cols)
            for name in ("weight", "out", "grad", "grad_weight", *STATES):
                if hasattr(args, name + "_strides"):
                    setattr(args, name + "_strides", Strides(cols + gap, cols))
            plan = self.plan(direction, types, args, max_cluster)
            if plan.access != access:
                break
            plans.append(plan)
            cols = plan.max_cols + step
        return plans

    def run(self, direction, weights, parameter_bytes=LARGE, max_cluster=MAX_CLUSTER):
        """Launches for all of them; returns the record of the launches."""
        work = (Work * len(weights))(*(Work(w.types, ctypes.addressof(w.args)) for w in weights))
        record = Record()
        run = self.passes[direction].run
        error = run(work, len(weights), max_cluster, parameter_bytes, byref(record))
        if error:
            raise RuntimeError(error.decode())
        return record

    def forward(self, types, *tensors, max_cluster=MAX_CLUSTER, **options):
        weight = Weight.forward(types, *tensors, **options)
        return self._single("forward", weight, max_cluster)

    def backward(self, types, *tensors, max_cluster=MAX_CLUSTER, **options):
        weight = Weight.backward(types, *tensors, **options)
        return self._single("backward", weight, max_cluster)

    def norms(self, types, *tensors, max_cluster=MAX_CLUSTER, **options):
        return self._single("norms", Weight.norms(types, *tensors, **options), max_cluster)

    def update(self, types, *tensors, max_cluster=MAX_CLUSTER, **options):
        return self._single("update", Weight.update(types, *tensors, **options), max_cluster)

    def _single(self, direction, weight, max_cluster):
        plan = self.plan(direction, weight.types, weight.args, max_cluster)
        record = self.run(direction, [weight], SMALL, max_cluster)
        return Result(weight.results(), plan, record)
