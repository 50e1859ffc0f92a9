"""NumPy 2 for the packaged server's stub, which was compiled against NumPy 1.

The stub's pybind11 (2.10) reads an array's item size where NumPy 1 kept it; in NumPy 2 a zero stands there. So the
arrays that it makes get strides of zero (every element is the first), and of an array that it is given it takes no
bytes. Upstream mended it after this release with a newer pybind11 (triton-inference-server/python_backend, pull
request 384); NVIDIA's image needs none of this. Here

- the C function that makes arrays is wrapped, so that NumPy computes the strides itself. Old pybind11 alone takes the
  table of NumPy's C functions from `numpy.core.multiarray`; all else takes it from `numpy._core` and is not affected;
- numbers are handed over by DLPack, which needs no item size of pybind11;
- strings, which DLPack does not know, are handed over as bytes of a type of their own, in which the item size also
  stands where pybind11 looks for it.

`attune_ensemble.serving.launcher.layout` appends a call of `install` to the triton_python_backend_utils.py that is
served.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["install"]

# Places in NumPy's table of C functions, which are part of its ABI.
_NEW_FROM_DESCR = 94
_TABLE_LENGTH = 300  # as much of it as pybind11 reads, and a little more

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
"""What C code points to, for the life of the process."""


def install(utils: Any) -> None:
    """Let `utils`, the stub's triton_python_backend_utils, hand arrays over rightly; with NumPy 1 nothing changes."""
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        return
    _wrap_new_from_descr()
    # Built into the stub's program, which takes names from this module into `utils` after this import.
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
    """Serialised strings as an array that says its size to old and new code alike.

    The low half of NumPy 2's type flags lies where NumPy 1 had the item size. A one there would mean that the items are
    references, so it stands there for as long as the stub looks and no longer, and in a type that no other array has.
    """

    def __init__(self, serialize: Callable[[npt.NDArray[Any]], Any]) -> None:
        self._serialize = serialize
        self._shown = threading.local()

    def serialize(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the stub calls while it makes a tensor of `array`: length and bytes of each string."""
        serialised = bytes(self._serialize(array))
        shown: npt.NDArray[Any] = np.ndarray(len(serialised), dtype=np.dtype("V1"), buffer=serialised)
        self._shown.flags = _item_size(shown.dtype)
        self._shown.flags.value = 1
        return shown

    def conceal(self) -> None:
        """Make the type whole again; to be called once the tensor is made, or was not."""
        if flags := self._shown.__dict__.pop("flags", None):
            flags.value = 0


def _item_size(dtype: np.dtype[Any]) -> ctypes.c_uint32:
    """Where NumPy 1 had a type's item size: after the object's head, typeobj, four characters and type_num."""
    return ctypes.c_uint32.from_address(id(dtype) + 32)


def _tensor_factory(compiled: Any, strings: _Strings) -> type:
    class Tensor:
        """Makes the stub's own tensors."""

        from_dlpack = staticmethod(compiled.from_dlpack)

        def __new__(cls, name: str, array: npt.NDArray[Any]) -> Any:
            if array.dtype.type in (np.object_, np.bytes_):
                try:
                    return compiled(name, array)
                finally:
                    strings.conceal()
            # DLPack knows no read-only memory, and the stub takes it in C order only.
            capsule: Any = np.require(array, requirements=("C", "W")).__dlpack__()
            tensor = compiled.from_dlpack(name, capsule)
            _set_name(capsule, _USED)  # the stub gives it another name, of which NumPy would complain
            return tensor

    return Tensor
