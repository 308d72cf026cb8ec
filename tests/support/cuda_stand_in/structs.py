"""The kernels' arguments and launches, as csrc/standardize.h, csrc/cuda/api.h, run.h have them."""

import ctypes
from ctypes import c_char_p, c_double, c_int32, c_int64, c_void_p

NO_LIMIT = 2**63 - 1  # the max_cols of a launch table's last entry


def struct(name, *fields):
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Shape = struct("Shape", ("rows", c_int64), ("cols", c_int64), ("run", c_int64))
Strides = struct("Strides", ("row", c_int64), ("run", c_int64))
Formula = struct(
    "Formula",
    ("eps", c_double),
    ("scale", c_double),
    ("correction", c_int64),
    ("eps_mode", c_int32),
    ("center", ctypes.c_bool),
)
ACCESSES = ("vector", "flat", "scalar")  # in the order of ws::Access
FORMS = ("rows", "cluster", "split")  # in the order of ws::Form
MAX_CLUSTER = 16  # of a chip with clusters; 1 of one without


class Tier(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        *((name, c_int32) for name in ("access_number", "form_number")),
        *((name, c_int32) for name in ("team", "elements", "team_rows")),
    ]


class Plan(ctypes.Structure):
    _anonymous_ = ("tier",)
    _fields_ = [
        ("tier", Tier),
        *((name, c_int32) for name in ("index", "vec", "rows", "resident", "chunks")),
        *((name, c_int64) for name in ("chunk_cols", "blocks", "weight")),
    ]

    @property
    def access(self):
        return ACCESSES[self.access_number]

    @property
    def form(self):
        return FORMS[self.form_number]

    @property
    def threads(self):
        return max(self.team, 128)

    @property
    def max_cols(self):
        if self.form == "split":
            return NO_LIMIT
        return self.team * self.elements * (MAX_CLUSTER if self.form == "cluster" else 1)


Work = struct("Work", ("types", c_int32), ("args", c_void_p))
RECORDED = 64
Record = struct(
    "Record",
    ("load_count", c_int64),
    ("load_bytes", c_int64),
    ("launches", c_int64),
    ("kernels", c_void_p * RECORDED),
    ("blocks", c_int64 * RECORDED),
    ("clusters", c_int32 * RECORDED),
    ("entries", c_int64),
    ("tiers", c_int32 * RECORDED),
)


def arguments(name, operands, vectors, *more):
    """Those of a pass: its operands, results first, then its vectors."""
    tensors = [((tensor, c_void_p), (tensor + "_strides", Strides)) for tensor in operands]
    return struct(
        name,
        ("shape", Shape),
        ("formula", Formula),
        *(field for pair in tensors for field in pair),
        *((vector, c_void_p) for vector in vectors),
        *more,
    )


NUMBERS = (
    "lr",
    "weight_decay",
    "momentum",
    "dampening",
    "beta1",
    "beta2",
    "eps",
    "step",
    "clip",
    "clip_eps",
)
FLAGS = ("adam", "nesterov", "decoupled", "maximize", "is_first", "is_true")
POINTERS = ("lr_at", "step_at", "factor", "grad_scale", "found_inf")
Rule = struct(
    "Rule",
    *((name, c_double) for name in NUMBERS),
    *((name, ctypes.c_bool) for name in FLAGS),
    *((name, c_void_p) for name in POINTERS),
)
STATES = ("first", "second", "largest")


STRUCTS = {
    "forward": arguments("Forward", ["out", "weight"], ["gain", "shift"]),
    "backward": arguments(
        "Backward", ["grad_weight", "weight", "grad"], ["grad_gain", "grad_shift", "gain"]
    ),
    "norms": arguments(
        "Norms", ["weight", "grad"], ["squared_norm", "grad_gain", "grad_shift", "gain"]
    ),
    "update": arguments(
        "Update",
        ["out", "weight", *STATES, "grad"],
        ["gain", "new_gain", "new_shift"],
        ("rule", Rule),
    ),
}
