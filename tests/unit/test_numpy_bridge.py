"""NumPy 2 behind a stub that was compiled for NumPy 1: `pytest tests/unit/test_numpy_bridge.py`.

A process of its own plays the stub, with the very reads that pybind11 makes; the integration tests have a real one.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 needs no bridge")

# `make_array` and `size_of` are py::array's constructor and nbytes() of pybind11 2.10: the C functions come from
# numpy.core.multiarray, an item's size from offset 32 of the type.
STUB = """
import ctypes, struct, sys, types
import numpy as np

def item_size(dtype):
    return ctypes.c_uint32.from_address(id(dtype) + 32).value

def make_array(data, dtype, shape):
    import numpy.core.multiarray as home
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi))(home._ARRAY_API, None)
    table = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_void_p))
    kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object, ctypes.c_int, ctypes.c_void_p,
                             ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p)
    steps, step = [], item_size(dtype)
    for length in reversed(shape):
        steps.insert(0, step)
        step *= length
    sizes = ctypes.c_ssize_t * len(shape)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dtype))  # the function keeps one
    made = kind(table[94])(np.ndarray, dtype, len(shape), sizes(*shape), sizes(*steps), data, 0, None)
    return made.copy()

def check_c_order(capsule):
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi))(capsule, b"dltensor")
    ndim = ctypes.c_int32.from_address(pointer + 16).value  # of DLManagedTensor: data, device, ndim, type, ...
    shape, strides = (ctypes.c_void_p.from_address(pointer + offset).value for offset in (24, 32))
    step = 1
    for axis in reversed(range(ndim)):
        assert ctypes.c_int64.from_address(strides + 8 * axis).value == step, "only C order is taken"
        step *= ctypes.c_int64.from_address(shape + 8 * axis).value

class Tensor:
    def __init__(self, name, array):
        serialised = np.asarray(utils.serialize_byte_tensor(array))
        self.data = bytes(memoryview(serialised))[: serialised.size * item_size(serialised.dtype)]
    def from_dlpack(name, capsule):
        check_c_order(capsule)
        tensor = Tensor.__new__(Tensor)
        tensor.array = np.from_dlpack(types.SimpleNamespace(__dlpack__=lambda **_: capsule,
                                                            __dlpack_device__=lambda: (1, 0)))
        return tensor
    from_dlpack = staticmethod(from_dlpack)

utils = types.ModuleType("triton_python_backend_utils")
utils.serialize_byte_tensor = lambda array: b"".join(struct.pack("<I", len(s)) + s for s in array.ravel())
sys.modules["c_python_backend_utils"] = stub = types.ModuleType("c_python_backend_utils")
stub.Tensor = Tensor
"""

CHECK = """
numbers = np.arange(6, dtype=np.float32)
strings = np.array([b"one", b"", b"three"], dtype=object)
def read():
    return make_array(numbers.tobytes(), np.dtype(np.float32), (2, 3))
def written():
    return stub.Tensor("x", strings).data
"""

BROKEN = (
    STUB
    + CHECK
    + """
assert (read() == 0).all(), "a stride of zero repeats the first"
assert written() == b"", "no bytes are taken"
"""
)

MENDED = (
    STUB
    + CHECK
    + """
from attune_ensemble.serving.launcher import numpy_bridge
numpy_bridge.install(utils)
assert (read() == numbers.reshape(2, 3)).all()
for _ in range(1000):
    assert written() == b"\\3\\0\\0\\0one\\0\\0\\0\\0\\5\\0\\0\\0three"
assert stub.Tensor("x", np.array([], dtype=object)).data == b""
assert np.dtype("V1").flags == 0
frozen = numbers.reshape(2, 3)[:, ::2]
frozen.flags.writeable = False
for array in (numbers, frozen, numbers[:0], np.zeros((0, 4), np.int32), numbers[3], np.array([True])):
    tensor = stub.Tensor("x", np.atleast_1d(array))
    assert (tensor.array == array).all() and tensor.array.dtype == array.dtype
"""
)


@pytest.mark.parametrize("program", [BROKEN, MENDED], ids=["without the bridge", "with it"])
def test_arrays_cross_whole(program):
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
