"""What an array is: of NumPy, a `Vector`, a tensor of PyTorch, or another that speaks DLPack.

Only this file asks. `kind_of` gives the operations in which the kinds differ; the rest of the
package calls those, and hands arrays of any kind to the extension of the device they lie on.
"""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._native import module
from .errors import brief, count, expected, one_of

__all__ = [
    "ArrayLike",
    "Kind",
    "Vector",
    "check_array",
    "device_of",
    "dtype_name",
    "float_dtype",
    "is_array",
    "kind_of",
    "lengths",
    "module_of",
    "on_device",
    "refuse_mask",
]

# A NumPy array, a Vector, or a tensor that speaks DLPack: the kinds share no type.
ArrayLike: TypeAlias = Any


def float_dtype(dtype: DTypeLike, name: str = "dtype") -> np.dtype[Any]:
    """``dtype`` if it is float32 or float64; TypeError otherwise."""
    try:
        result = np.dtype(dtype)
    except (TypeError, ValueError):
        raise TypeError(expected(name, "float32 or float64", brief(dtype))) from None
    if result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(expected(name, "dtype float32 or float64", result))
    return result


def lengths(shape: Any) -> tuple[int, ...]:
    """A shape as a tuple, if an array of it can be addressed."""
    given = shape if isinstance(shape, (tuple, list)) else (shape,)
    result = tuple(count("shape", n, 0) for n in given)
    count("shape", math.prod(result), 0, 2**59)  # elements that have an address
    return result


def dtype_name(dtype: Any) -> str:
    """What a dtype is called in every kind: ``float32``."""
    try:
        return _dtype_name(dtype)
    except TypeError:  # what NumPy does not know, or nothing that can be a key
        return str(dtype)


@lru_cache
def _dtype_name(dtype: Any) -> str:
    name = str(dtype)
    return name[6:] if name.startswith("torch.") else str(np.dtype(dtype).name)


_OF_ARRAYS = ("shape", "dtype", "__dlpack_device__")


def is_array(x: Any) -> bool:
    """Whether this is one array, and not some things that may be arrays."""
    return hasattr(x, "__dlpack__")


def check_array(name: str, x: Any) -> None:
    """Raise TypeError unless this is an array; one whose mask would be lost is none."""
    kind: Any = type(x)
    if kind is np.ndarray or _says_it_is_an_array(kind):
        return
    if isinstance(x, type) or not all(hasattr(x, a) for a in _OF_ARRAYS):
        raise TypeError(expected(name, "an array (NumPy or DLPack)", type(x).__name__))
    refuse_mask(name, x)


@lru_cache
def _says_it_is_an_array(kind: type) -> bool:
    """Whether all objects of a type are arrays, as PyTorch's tensors are, none with a mask."""
    return all(hasattr(kind, a) for a in _OF_ARRAYS) and not issubclass(kind, np.ma.MaskedArray)


def refuse_mask(name: str, x: Any) -> None:
    """Raise TypeError for an array whose mask would be lost."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(expected(name, "an array without a mask (x.filled(…))", "a masked array"))


def device_of(x: Any) -> str:
    """``"cpu"`` or ``"cuda"``, for an array of NumPy or one that speaks DLPack."""
    if type(x) is np.ndarray or getattr(x, "is_cpu", False):  # at once, for the usual ones
        return "cpu"
    if getattr(x, "is_cuda", False):
        return "cuda"
    if not hasattr(x, "__dlpack_device__") or isinstance(x, type):
        raise TypeError(expected("x", "an array (NumPy or DLPack)", type(x).__name__))
    refuse_mask("x", x)
    kind = int(x.__dlpack_device__()[0])
    names = {1: "cpu", 2: "cuda", 3: "cpu", 13: "cuda"}
    if kind not in names:
        raise TypeError(expected("x", "device cpu or cuda", f"DLPack device {kind}"))
    return names[kind]


def module_of(x: Any) -> ModuleType:
    """The extension for the device that an array lies on."""
    return module(device_of(x))


class Vector:
    """A dense array in a device's memory, exchanged by DLPack without a copy.

    Parameters
    ----------
    shape : int or tuple of int
        (n,), or (n, k) for a block of k vectors.
    dtype : float32 or float64
    device : "cpu" or "cuda"
    order : "C" or "F"
        Memory order; "F" makes each column of a block contiguous, as Hessian products want it.

    Raises
    ------
    DeviceError
        If the device is not there.

    Examples
    --------
    >>> import numpy as np, saddlepoint as sp
    >>> v = sp.Vector.from_numpy(np.arange(3.0))
    >>> v.numpy()
    array([0., 1., 2.])
    """

    def __init__(
        self,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = np.float32,
        device: str = "cpu",
        order: str = "C",
    ) -> None:
        self.shape = lengths(shape)
        one_of("order", order, ("C", "F"))
        self.dtype = float_dtype(dtype)
        self.device = device
        self.order = order
        self._buffer = module(device).Buffer(math.prod(self.shape) * self.dtype.itemsize)
        self._offset = 0  # elements; views of rows share the buffer

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def T(self) -> Vector:
        """The transpose, in the same memory."""
        return self._view(self.shape[::-1], "F" if self.order == "C" else "C")

    def rows(self, rows: slice) -> Vector:
        """Consecutive rows of a C-ordered array, in the same memory."""
        if self.order != "C" and self.ndim > 1:
            raise ValueError(expected("rows", "an array in C order", "Fortran order"))
        begin, end, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError(expected("rows", "consecutive rows", f"a step of {step}"))
        view = self._view((max(end - begin, 0), *self.shape[1:]), self.order)
        view._offset = self._offset + begin * math.prod(self.shape[1:])
        return view

    def reshaped(self, shape: tuple[int, ...]) -> Vector:
        """The same elements in another shape, in the same memory."""
        if math.prod(shape) != self.size or (self.order != "C" and self.ndim > 1):
            raise ValueError(expected("shape", f"one of {self.size} elements in C order", shape))
        return self._view(shape, "C")

    def _view(self, shape: tuple[int, ...], order: str) -> Vector:
        view = object.__new__(Vector)
        view.shape, view.dtype, view.device, view.order = shape, self.dtype, self.device, order
        view._buffer, view._offset = self._buffer, self._offset
        return view

    @classmethod
    def from_numpy(cls, x: NDArray[Any], device: str = "cpu") -> Vector:
        """A copy of a host array on a device."""
        if not isinstance(x, np.ndarray):
            raise TypeError(expected("x", "a NumPy array", type(x).__name__))
        refuse_mask("x", x)
        float_dtype(x.dtype, "x")
        return cls._from_host(x, device)

    @classmethod
    def _from_host(cls, x: NDArray[Any], device: str) -> Vector:
        """`from_numpy` for any dtype: labels and indices travel the same way."""
        order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
        vector = cls._new(x.shape, x.dtype, device, order)
        vector._buffer.copy_from(np.ascontiguousarray(x.T if order == "F" else x))
        return vector

    @classmethod
    def _new(
        cls, shape: tuple[int, ...], dtype: np.dtype[Any], device: str, order: str = "C"
    ) -> Vector:
        vector = object.__new__(cls)
        vector.shape, vector.dtype, vector.device, vector.order = shape, dtype, device, order
        vector._buffer = module(device).Buffer(math.prod(shape) * dtype.itemsize)
        vector._offset = 0
        return vector

    def numpy(self) -> NDArray[Any]:
        """A copy on the host."""
        host = np.empty(self.shape if self.order == "C" else self.shape[::-1], self.dtype)
        self._buffer.copy_to(host, self._offset * self.dtype.itemsize)
        return host if self.order == "C" else host.T

    def copy(self) -> Vector:
        """A copy on the same device."""
        result = self._view(self.shape, self.order)
        bytes_ = self.size * self.dtype.itemsize
        result._buffer = self._buffer.copy(self._offset * self.dtype.itemsize, bytes_)
        result._offset = 0
        return result

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if dl_device is not None and dl_device != self.__dlpack_device__():
            raise BufferError(expected("dl_device", self.__dlpack_device__(), dl_device))
        if copy:
            return self.copy().__dlpack__(stream=stream, max_version=max_version)
        fastest_first = self.shape[::-1] if self.order == "C" else self.shape
        strides = [math.prod(fastest_first[:i]) for i in range(self.ndim)]
        return self._buffer.dlpack(
            offset=self._offset * self.dtype.itemsize,
            shape=list(self.shape),
            strides=strides[::-1] if self.order == "C" else strides,
            code={"i": 0, "u": 1, "f": 2}[self.dtype.kind],
            bits=8 * self.dtype.itemsize,
            stream=stream,
            versioned=max_version is not None and max_version[0] >= 1,
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self._buffer.dlpack_device()
        return int(kind), int(index)

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> Any:
        return Vector._from_host, (self.numpy(), self.device)

    def __repr__(self) -> str:
        return f"Vector(shape={self.shape}, dtype={self.dtype}, device={self.device!r})"


class Kind:
    """What the kinds of arrays do each in its own way; as it stands, for NumPy's.

    A dtype is NumPy's, whatever the kind calls it.
    """

    #: Whether arrays can be added, multiplied and indexed.
    arithmetic = True

    def is_float64(self, x: ArrayLike) -> bool:
        """Whether ``x`` is of float64."""
        return bool(x.dtype == np.float64)

    def empty(self, x: ArrayLike, shape: tuple[int, ...], dtype: Any = None) -> ArrayLike:
        """An array on the device of ``x``, of its dtype unless one is given."""
        return np.empty(shape, x.dtype if dtype is None else dtype)

    def zeros(self, x: ArrayLike, shape: tuple[int, ...]) -> ArrayLike:
        """Zeros of the dtype of ``x``, on its device."""
        return np.zeros(shape, x.dtype)

    def dense_like(self, x: ArrayLike) -> ArrayLike:
        """A dense array of the shape and dtype of ``x``, in its memory order where it has one."""
        return np.empty_like(x, subok=False)

    def copy(self, x: ArrayLike) -> ArrayLike:
        """A copy of the same kind on the same device."""
        return x.copy()

    def writable(self, x: ArrayLike) -> ArrayLike:
        """A copy that may change, in the memory order of ``x``."""
        return np.array(x)

    def returned(self, x: ArrayLike, like: ArrayLike) -> ArrayLike:
        """What became of a `writable` copy of ``like``, as an array of the kind of ``like``."""
        del like
        return x

    def astype(self, x: ArrayLike, dtype: Any) -> ArrayLike:
        """``x`` in another dtype, on the same device."""
        return x.astype(dtype)

    def detached(self, x: Any) -> Any:
        """``x`` without what autograd knows of it."""
        return x

    def columns(self, x: ArrayLike) -> ArrayLike:
        """(k, n) of a block (n, k), each row in one piece, free in Fortran order; so is (n,)."""
        return np.ascontiguousarray(x.T)

    def rows(self, x: ArrayLike, rows: slice) -> ArrayLike:
        """Consecutive rows, in the same memory."""
        return x[rows]

    def reshaped(self, x: ArrayLike, shape: tuple[int, ...]) -> ArrayLike:
        """The elements of a dense array in another shape, in the same memory."""
        return x.reshape(shape)

    def stacked(self, x: ArrayLike, rows: tuple[ArrayLike, ...]) -> ArrayLike:
        """Arrays (n,) as the rows of one of float64, on the device of ``x``."""
        return np.stack([np.asarray(row, np.float64) for row in rows])

    def dense(self, name: str, x: ArrayLike, dtype: Any) -> ArrayLike:
        """``x`` in a dtype, where it is no array that leaves zeros out; a copy only if needed."""
        del name
        return np.asarray(x, dtype)

    def from_host(self, x: NDArray[Any], like: ArrayLike) -> ArrayLike:
        """A host array as one of the dtype of ``like``, on its device."""
        return np.asarray(x, like.dtype)

    def to_host(self, x: ArrayLike) -> NDArray[Any]:
        """A copy on the host."""
        return np.array(np.from_dlpack(x))

    def adopted(self, x: Any, like: ArrayLike, name: str) -> ArrayLike:
        """A copy of what foreign code returned, of the dtype and on the device of ``like``."""
        host = np.asarray(kind_of(x).detached(x))
        if host.dtype.kind not in "fiub":
            raise TypeError(expected(name, "real numbers", f"dtype {host.dtype}"))
        return np.array(host, like.dtype)


class _Others(Kind):
    """Arrays of which we know that they speak DLPack; results beside them are NumPy's."""

    def is_float64(self, x: ArrayLike) -> bool:
        return str(x.dtype) == "float64"

    def dense_like(self, x: ArrayLike) -> ArrayLike:
        try:
            dtype = np.dtype(str(x.dtype))
        except TypeError:
            what = "a kind of array that bfloat16 can be allocated as"
            raise TypeError(expected("x", what, type(x).__name__)) from None
        return np.empty(tuple(x.shape), dtype)

    def returned(self, x: ArrayLike, like: ArrayLike) -> ArrayLike:
        return like.__array_namespace__().asarray(x)

    def columns(self, x: ArrayLike) -> ArrayLike:
        return x if len(x.shape) == 1 else x.T


class _Vectors(Kind):
    arithmetic = False

    def empty(self, x: ArrayLike, shape: tuple[int, ...], dtype: Any = None) -> ArrayLike:
        return Vector._new(shape, x.dtype if dtype is None else np.dtype(dtype), x.device)

    def zeros(self, x: ArrayLike, shape: tuple[int, ...]) -> ArrayLike:
        return Vector._new(shape, x.dtype, x.device)  # whose memory is zero at first

    def dense_like(self, x: ArrayLike) -> ArrayLike:
        return Vector(x.shape, x.dtype, x.device, x.order)

    def writable(self, x: ArrayLike) -> ArrayLike:
        return x.copy()

    def astype(self, x: ArrayLike, dtype: Any) -> ArrayLike:
        return Vector.from_numpy(x.numpy().astype(dtype), x.device)

    def columns(self, x: ArrayLike) -> ArrayLike:
        if x.ndim == 1:
            return x
        if x.order != "F" and x.shape[1] != 1:  # one column is in both orders
            raise ValueError(expected("v", "a block in Fortran order", "C order"))
        return x.T

    def rows(self, x: ArrayLike, rows: slice) -> ArrayLike:
        return x.rows(rows)

    def reshaped(self, x: ArrayLike, shape: tuple[int, ...]) -> ArrayLike:
        return x.reshaped(shape)

    def stacked(self, x: ArrayLike, rows: tuple[ArrayLike, ...]) -> ArrayLike:
        table = self.empty(x, (len(rows), rows[0].size), np.float64)  # zero
        for k, row in enumerate(rows):
            own = row if row.dtype == np.float64 else kind_of(row).astype(row, np.float64)
            there = table.rows(slice(k, k + 1)).reshaped(row.shape)
            module(table.device).axpy(1.0, own, there)
        return table

    def from_host(self, x: NDArray[Any], like: ArrayLike) -> ArrayLike:
        return Vector.from_numpy(np.asarray(x, like.dtype), like.device)

    def to_host(self, x: ArrayLike) -> NDArray[Any]:
        host: NDArray[Any] = x.numpy()
        return host

    def adopted(self, x: Any, like: ArrayLike, name: str) -> ArrayLike:
        if not (isinstance(x, Vector) and x.dtype == like.dtype):
            raise TypeError(expected(name, f"a Vector of {like.dtype}", type(x).__name__))
        return x.copy()


class _Tensors(Kind):
    """PyTorch's; only where there is one is PyTorch there to be asked for its dtypes."""

    def _dtype(self, dtype: Any) -> Any:
        return getattr(sys.modules["torch"], dtype_name(dtype))

    def is_float64(self, x: ArrayLike) -> bool:
        return x.dtype is sys.modules["torch"].float64

    def empty(self, x: ArrayLike, shape: tuple[int, ...], dtype: Any = None) -> ArrayLike:
        return x.new_empty(shape, dtype=None if dtype is None else self._dtype(dtype))

    def zeros(self, x: ArrayLike, shape: tuple[int, ...]) -> ArrayLike:
        return x.new_zeros(shape)

    def dense_like(self, x: ArrayLike) -> ArrayLike:
        return sys.modules["torch"].empty_like(x)

    def copy(self, x: ArrayLike) -> ArrayLike:
        return x.detach().clone()

    writable = copy

    def astype(self, x: ArrayLike, dtype: Any) -> ArrayLike:
        return x.to(self._dtype(dtype))

    def detached(self, x: Any) -> Any:
        return x.detach()

    def columns(self, x: ArrayLike) -> ArrayLike:
        return (x if x.ndim == 1 else x.T).contiguous()

    def stacked(self, x: ArrayLike, rows: tuple[ArrayLike, ...]) -> ArrayLike:
        return sys.modules["torch"].stack([row.double() for row in rows])

    def dense(self, name: str, x: ArrayLike, dtype: Any) -> ArrayLike:
        if "strided" not in str(x.layout):
            raise TypeError(expected(name, "a dense tensor", x.layout))
        return self.astype(x.detach(), dtype)

    def from_host(self, x: NDArray[Any], like: ArrayLike) -> ArrayLike:
        return like.detach().new_tensor(x)

    def to_host(self, x: ArrayLike) -> NDArray[Any]:
        return np.array(np.from_dlpack(x.detach().cpu()))

    def adopted(self, x: Any, like: ArrayLike, name: str) -> ArrayLike:
        tensor = x.detach() if kind_of(x) is self else self.from_host(np.array(x), like)
        if tensor.is_complex() or tensor.device != like.device:
            wanted = f"real numbers on {like.device}"
            raise TypeError(expected(name, wanted, f"{tensor.dtype} on {tensor.device}"))
        return self.empty(like, tuple(tensor.shape)).copy_(tensor)


NUMPY, OTHER, VECTOR, TENSOR = Kind(), _Others(), _Vectors(), _Tensors()


def kind_of(x: Any) -> Kind:
    """The kind that an array is of; other things are as arrays that nothing is known of."""
    if isinstance(x, np.ndarray):
        return NUMPY
    if isinstance(x, Vector):
        return VECTOR
    return TENSOR if hasattr(x, "new_empty") else OTHER


def on_device(x: NDArray[Any], device: str) -> ArrayLike:
    """``x`` itself on the CPU, a copy of it elsewhere."""
    return x if device == "cpu" else Vector._from_host(x, device)
