"""NumPy 2 with the packaged server's stub, which was compiled against NumPy 1.

The stub's pybind11 (2.10) reads an array's item size at NumPy 1's offset; in NumPy 2 there is a zero. So the arrays
that it creates have strides of zero (every element is the first), and of an array that it receives it copies no bytes.
It was fixed upstream after this release with a newer pybind11 (triton-inference-server/python_backend, pull request
384); NVIDIA's image needs none of this. Here

- the C function that creates arrays is wrapped, so that NumPy computes the strides itself. Only old pybind11 takes the
  table of NumPy's C functions from `numpy.core.multiarray`; all else takes it from `numpy._core` and is not affected;
- numbers are passed by DLPack, which does not use pybind11's item size;
- strings, which DLPack does not support, are passed as bytes of a custom type, in which the item size also
  stands where pybind11 looks for it.

`attune_ensemble.serving.launcher.layout` appends a call of `install` to the triton_python_backend_utils.py that is
served.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["install"]

# Indices in NumPy's table of C functions, which are part of its ABI.
_NEW_FROM_DESCR = 94
_TABLE_LENGTH = 300  # more than pybind11 reads of it

_POINTER = ctypes.c_void_p
# PyArray_NewFromDescr(subtype, descr, nd, dims, strides, data, flags, obj)
_NewFromDescr = ctypes.PYFUNCTYPE(
    _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER
)

_get_pointer = ctypes.PYFUNCTYPE(_POINTER, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, _POINTER, ctypes.c_char_p, _POINTER)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_USED = ctypes.c_char_p(b"used_dltensor")

_kept: list[Any] = []
"""Objects that C code points to, kept alive for the life of the process."""


def install(utils: Any) -> None:
    """Patch `utils`, the stub's triton_python_backend_utils, to pass arrays correctly; does nothing with NumPy 1."""
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return
    _wrap_new_from_descr()
    # Built into the stub's binary, which copies names from this module into `utils` after this import.
    import c_python_backend_utils as stub

    strings = _Strings(utils.serialize_byte_tensor)
    utils.serialize_byte_tensor = strings.serialize
    stub.Tensor = _tensor_factory(stub.Tensor, strings)


def _wrap_new_from_descr() -> None:
    old_home: Any = importlib.import_module("numpy.core.multiarray")
    table = (_POINTER * _TABLE_LENGTH)()
    address: Any = _get_pointer(old_home._ARRAY_API, None)
    ctypes.memmove(table, address, ctypes.sizeof(table))
    original = _NewFromDescr(table[_NEW_FROM_DESCR] or 0)

    @_NewFromDescr
    def in_c_order(subtype, descr, nd, dims, strides, data, flags, obj):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return original(subtype, descr, nd, dims, None, data, flags, obj)  # no strides: C order

    table[_NEW_FROM_DESCR] = ctypes.cast(in_c_order, _POINTER)
    _kept.extend((table, in_c_order))
    old_home._ARRAY_API = _new_capsule(ctypes.addressof(table), None, None)


class _Strings:
    """Serialised strings as an array whose item size is right at the offsets of NumPy 1 and 2.

    The low half of NumPy 2's type flags is at NumPy 1's offset of the item size. A one there would mean that the items
    are references, so it is set only while the stub reads it, and in a type that no other array has.
    """

    def __init__(self, serialize: Callable[[npt.NDArray[Any]], Any]) -> None:
        self._serialize = serialize
        self._shown = threading.local()

    def serialize(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Serialise `array`, as called by the stub when it creates a tensor: length and bytes of each string."""
        serialised = bytes(self._serialize(array))
        shown: npt.NDArray[Any] = np.ndarray(len(serialised), dtype=np.dtype("V1"), buffer=serialised)
        self._shown.flags = _item_size(shown.dtype)
        self._shown.flags.value = 1
        return shown

    def conceal(self) -> None:
        """Restore the type; to be called after the tensor was created, or failed to be."""
        if flags := self._shown.__dict__.pop("flags", None):
            flags.value = 0


def _item_size(dtype: np.dtype[Any]) -> ctypes.c_uint32:
    """Return the address of NumPy 1's item size: after the object's head, typeobj, four characters and type_num."""
    return ctypes.c_uint32.from_address(id(dtype) + 32)


def _with_strides(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array; one without elements has the strides of C order, where recent NumPy sets all of them to 0."""
    if array.size:
        return array
    strides = [array.itemsize * math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    return np.lib.stride_tricks.as_strided(array, strides=strides)


def _tensor_factory(compiled: Any, strings: _Strings) -> type:
    class Tensor:
        """Creates the stub's tensors."""

        from_dlpack = staticmethod(compiled.from_dlpack)

        def __new__(cls, name: str, array: npt.NDArray[Any]) -> Any:
            if array.dtype.type in (np.object_, np.bytes_):
                try:
                    return compiled(name, array)
                finally:
                    strings.conceal()
            # DLPack has no read-only memory, and the stub takes C order only.
            capsule: Any = _with_strides(np.require(array, requirements=("C", "W"))).__dlpack__()
            tensor = compiled.from_dlpack(name, capsule)
            _set_name(capsule, _USED)  # the stub renames it, which NumPy would report as an error
            return tensor

    return Tensor
