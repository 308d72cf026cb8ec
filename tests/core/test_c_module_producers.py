"""torch_ws._C and the producers of DLPack arrays: both protocols, and producers that lie."""

import ctypes
import gc

import numpy as np
import pytest
from torch_ws import _C

KEEP = []  # what capsules point to
READ_ONLY, IS_COPIED = 1, 2
Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = (
    ctypes.py_object,
    [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
)
name_of = ctypes.pythonapi.PyCapsule_GetName
name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", Deleter))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


@pytest.fixture(autouse=True, scope="module")
def cheap_collections():
    """Of what these tests make alone."""
    gc.freeze()
    yield
    gc.unfreeze()


def int64s(values):
    return None if values is None else (ctypes.c_int64 * max(1, len(values)))(*values)


class Producer:
    """A float32 array that says of itself whatever it is told to."""

    def __init__(self, array, *, versioned=True, major=1, flags=0, knows_version=True, **lies):
        self.array, self.versioned, self.knows_version = array, versioned, knows_version
        self.deleted, self.capsules, self.calls = 0, [], []
        shape, strides = array.shape, [s // array.itemsize for s in array.strides]
        told = {"data": array.ctypes.data, "device_type": 1, "device_id": 0, "ndim": array.ndim}
        told |= {"code": 2, "bits": 32, "lanes": 1, "byte_offset": 0, "shape": shape}
        told |= {"strides": strides, **lies}
        told["shape"], told["strides"] = int64s(told["shape"]), int64s(told["strides"])

        def delete(pointer):
            self.deleted += 1

        tensor, self.deleter = Tensor(**told), Deleter(delete)
        if versioned:
            self.managed = Versioned(major, 0, None, self.deleter, flags, tensor)
        else:
            self.managed = Managed(tensor, None, self.deleter)
        KEEP.append((self, told))

    def __dlpack_device__(self):
        return (1, 0)

    def __dlpack__(self, **options):
        self.calls.append(options)
        if not self.knows_version and "max_version" in options:
            raise TypeError("unexpected keyword argument 'max_version'")
        name = b"dltensor_versioned" if self.versioned else b"dltensor"
        self.capsules.append(new_capsule(ctypes.addressof(self.managed), name, None))
        return self.capsules[-1]

    def used_once(self):
        gc.collect()
        used = [name_of(capsule).decode() for capsule in self.capsules]
        name = "used_dltensor_versioned" if self.versioned else "used_dltensor"
        return self.deleted == 1 and used == [name]


W = np.random.default_rng(0).standard_normal((4, 6)).astype("f")
EXPECTED = np.empty_like(W)
_C.forward(W, EXPECTED)


@pytest.mark.parametrize(
    "options",
    [
        {"versioned": True},
        {"versioned": False},  # told of version 1, and answers in 0.x
        {"versioned": False, "knows_version": False},
        {"versioned": True, "strides": None},  # C-contiguous
        {"versioned": True, "flags": READ_ONLY},
        {"versioned": True, "flags": IS_COPIED},
        {"versioned": True, "flags": 1 << 40},  # of a later version
    ],
)
def test_both_protocols(options):
    weight, out = Producer(W, **options), np.empty_like(W)
    _C.forward(weight, out)
    assert np.array_equal(out, EXPECTED) and weight.used_once()
    assert weight.calls[0] == {"max_version": (1, 0)}  # and no stream on the CPU
    assert weight.calls[1:] == ([] if options.get("knows_version", True) else [{}])


@pytest.mark.parametrize("versioned", [False, True])
def test_results_go_to_the_producers_memory(versioned):
    out = Producer(np.zeros_like(W), versioned=versioned)
    _C.forward(W, out)
    assert np.array_equal(out.array, EXPECTED) and out.used_once()


def test_a_byte_offset_is_followed():
    buffer = np.zeros(40, "f")
    buffer[3:27] = W.ravel()
    weight = Producer(W, data=buffer.ctypes.data, byte_offset=12)
    out = np.empty_like(W)
    _C.forward(weight, out)
    assert np.array_equal(out, EXPECTED)


LIES = {
    "ndim -1": ({"ndim": -1}, "at most 64 dimensions, got -1"),
    "ndim 65": ({"ndim": 65, "shape": [1] * 65, "strides": [1] * 65}, "at most 64 .* got 65"),
    "ndim 2**31 - 1": ({"ndim": 2**31 - 1}, "at most 64 dimensions, got 2147483647"),
    "no shape": ({"shape": None}, "must have a shape"),
    "negative size": ({"shape": [4, -6]}, r"no negative size, got \(4, -6\)"),
    "negative sizes": ({"shape": [-4, -6]}, r"no negative size, got \(-4, -6\)"),
    "negative and zero": ({"shape": [0, -6]}, r"no negative size"),
    "2**64 elements": ({"shape": [2**32, 2**32], "strides": None}, "must fit into memory"),
    "2**64 elements at one place": ({"shape": [2**32] * 2, "strides": [0, 0]}, "must fit into"),
    "2**62 elements of 4 bytes": ({"shape": [2**31, 2**31], "strides": [0, 0]}, "must fit into"),
    "huge stride": ({"strides": [2**62, 1]}, "must fit into memory, got shape .* and strides"),
    "smallest stride": ({"strides": [-(2**63), 1]}, "must fit into memory"),
    "offset past the end": ({"byte_offset": 2**64 - 4}, "must fit into memory"),
    "no data": ({"data": None}, "must have memory for its elements"),
    "lanes 2": ({"lanes": 2}, "must be float64, .* got .* 2 lanes"),
    "lanes 0": ({"lanes": 0}, "must be float64, .* got .* 0 lanes"),
    "bits 8": ({"bits": 8}, "must be float64, .* got float8"),
    "bits 0": ({"bits": 0}, "must be float64, .* got float0"),
    "complex": ({"code": 5, "bits": 64}, "must be float64, .* got DLPack type code 5"),
    "misaligned": ({"byte_offset": 2}, "must be aligned to its elements of 4 bytes"),
    "another device": ({"device_type": 2}, "on the device that its __dlpack_device__ names"),
    "another index": ({"device_id": 1}, "on the device that its __dlpack_device__ names"),
}


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("argument", ["weight", "out", "gain"])
@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(lie, argument, versioned):
    lies, message = LIES[lie]
    liar = Producer(W.copy(), versioned=versioned, **lies)
    arrays = {"weight": W, "out": np.full_like(W, 7), argument: liar}
    if argument == "gain" and "got" in message and "float64" in message:
        message = "must be contiguous, of shape"  # looked at before the dtype
    with pytest.raises(ValueError, match=f"{argument}.*{message}"):
        _C.forward(*arrays.values())
    assert liar.used_once()
    assert argument == "out" or (arrays["out"] == 7).all()


@pytest.mark.parametrize("major", [0, 2, 2**32 - 1])
def test_another_version_is_refused(major):
    weight = Producer(W, major=major)
    with pytest.raises(ValueError, match=f"weight must come by DLPack .* got version {major}"):
        _C.forward(weight, np.empty_like(W))
    assert weight.used_once()


@pytest.mark.parametrize(
    ("flags", "message"),
    [(READ_ONLY, "out must be writable"), (IS_COPIED, "out must be shared .* gave a copy")],
)
def test_results_that_would_be_lost_are_refused(flags, message):
    out = Producer(np.full_like(W, 7), flags=flags)
    with pytest.raises(ValueError, match=message):
        _C.forward(W, out)
    assert (out.array == 7).all() and out.used_once()


class Answers:
    def __init__(self, capsule, device=(1, 0)):
        self.capsule, self.device = capsule, device

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **options):
        return self.capsule


@pytest.mark.parametrize("answer", [None, 3, W, new_capsule(8, b"another", None)])
def test_what_is_no_capsule_is_refused(answer):
    with pytest.raises(TypeError, match="weight's __dlpack__ must return an unused DLPack capsule"):
        _C.forward(Answers(answer), np.empty_like(W))


def test_a_capsule_is_used_once():
    weight = Producer(W)
    answers = Answers(weight.__dlpack__())
    out = np.empty_like(W)
    _C.forward(answers, out)
    with pytest.raises(TypeError, match="must return an unused DLPack capsule"):
        _C.forward(answers, out)
    assert weight.used_once()


@pytest.mark.parametrize("device", [None, 1, (1,), (1, 0, 0), ("cpu", 0), (2**40, 0)])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(TypeError, match="weight's __dlpack_device__ must return two ints, got"):
        _C.forward(Answers(Producer(W).__dlpack__(), device), np.empty_like(W))


def test_the_producers_own_error_arrives():
    class Fails(Producer):
        def __dlpack__(self, **options):
            raise BufferError("not today")

    with pytest.raises(BufferError, match="not today"):
        _C.forward(Fails(W), np.empty_like(W))


def test_half_of_a_protocol_is_no_array():
    class NoDevice:
        def __dlpack__(self):
            raise AssertionError("called")

    with pytest.raises(TypeError, match=r"out must be an array with __dlpack__ .* got NoDevice"):
        _C.forward(W, NoDevice())
