"""Vectors on any device, and the eight functions through which all analysis touches them.

``dot``, ``axpy``, ``scale``, ``norm``, ``copy``, ``empty_like``, ``random`` and ``gather`` take
NumPy arrays, `Vector` and PyTorch tensors, stay on their device, and sum in float64 over blocks
that do not depend on the number of threads. Only ``gather`` brings data to the host.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._native import check_array, device_of, module, module_of, refuse_mask
from .errors import brief, count, expected, number, one_of

__all__ = [
    "ArrayLike",
    "Vector",
    "axpy",
    "copy",
    "dot",
    "empty_like",
    "gather",
    "norm",
    "random",
    "scale",
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


def _lengths(shape: Any) -> tuple[int, ...]:
    given = shape if isinstance(shape, (tuple, list)) else (shape,)
    lengths = tuple(count("shape", n, 0) for n in given)
    count("shape", math.prod(lengths), 0, 2**59)  # elements that have an address
    return lengths


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
        self.shape = _lengths(shape)
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
    def of_bytes(cls, count: int, device: str = "cpu") -> Vector:
        """Bytes, for what is no number."""
        vector = object.__new__(cls)
        vector.shape, vector.dtype = (count,), np.dtype(np.uint8)
        vector.device, vector.order = device, "C"
        vector._buffer, vector._offset = module(device).Buffer(count), 0
        return vector

    @classmethod
    def _from_host(cls, x: NDArray[Any], device: str) -> Vector:
        """`from_numpy` for any dtype: labels and indices travel the same way."""
        vector = object.__new__(cls)
        vector.shape, vector.dtype, vector.device = x.shape, x.dtype, device
        vector.order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
        vector._buffer, vector._offset = module(device).Buffer(x.nbytes), 0
        vector._buffer.copy_from(np.ascontiguousarray(x.T if vector.order == "F" else x))
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


def check_directions(v: Any, n: int) -> None:
    """Raise unless this is one direction (n,), or a block (n, k) of them."""
    if not hasattr(v, "shape"):
        raise TypeError(expected("v", "an array", type(v).__name__))
    refuse_mask("v", v)
    if len(v.shape) not in (1, 2) or v.shape[0] != n:
        raise ValueError(expected("v", f"shape ({n},) or ({n}, k)", tuple(v.shape)))


def on_device(x: NDArray[Any], device: str) -> ArrayLike:
    """``x`` itself on the CPU, a copy of it elsewhere."""
    return x if device == "cpu" else Vector._from_host(x, device)


def dot(x: ArrayLike, y: ArrayLike) -> float:
    """Inner product xᵀy, summed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from saddlepoint import vector
    >>> vector.dot(np.ones(4), np.arange(4.0))
    6.0
    """
    return float(module_of(x).dot(x, y))


def norm(x: ArrayLike) -> float:
    """Euclidean norm ‖x‖, summed in float64, also where squares leave its range."""
    square = dot(x, x)
    if 1e-280 < square < math.inf or str(x.dtype).endswith("float32"):
        return math.sqrt(square)
    factor = 2.0**-600 if square > 1.0 else 2.0**600
    scaled = copy(x)
    scale(factor, scaled)
    return math.sqrt(dot(scaled, scaled)) / factor


def axpy(a: float, x: ArrayLike, y: ArrayLike) -> None:
    """``y += a x``, in place."""
    module_of(y).axpy(number("a", a), x, y)


def scale(a: float, x: ArrayLike) -> None:
    """``x *= a``, in place."""
    module_of(x).scale(number("a", a), x)


def copy(x: ArrayLike) -> ArrayLike:
    """A copy of the same kind on the same device."""
    check_array("x", x)
    if hasattr(x, "clone"):
        return x.detach().clone()
    return x.copy()


def owned(x: Any, like: ArrayLike, name: str, shape: tuple[int, ...], of: str = "") -> ArrayLike:
    """A copy of what foreign code returned, of the kind, dtype and device of ``like``.

    As SciPy has it, ``x`` may be any array: read-only, of another precision, an argument handed
    back, or memory that its maker goes on writing to. Only its shape is fixed; ``of`` says of what.
    """
    result = _owned(x, like, name)
    if tuple(result.shape) != shape:
        raise ValueError(expected(name, f"{of}shape {shape}", tuple(result.shape)))
    return result


def _owned(x: Any, like: ArrayLike, name: str) -> ArrayLike:
    refuse_mask(name, x)
    if isinstance(like, Vector) or isinstance(x, Vector):
        if not (isinstance(x, Vector) and x.dtype == getattr(like, "dtype", None)):
            kind = f"a Vector of {like.dtype}" if isinstance(like, Vector) else "an array"
            raise TypeError(expected(name, kind, type(x).__name__))
        return x.copy()
    if hasattr(like, "new_empty"):
        tensor = x.detach() if hasattr(x, "detach") else like.detach().new_tensor(np.array(x))
        if tensor.is_complex() or tensor.device != like.device:
            wanted = f"real numbers on {like.device}"
            raise TypeError(expected(name, wanted, f"{tensor.dtype} on {tensor.device}"))
        return like.detach().new_empty(tuple(tensor.shape)).copy_(tensor)
    host = np.asarray(x.detach() if hasattr(x, "detach") else x)
    if host.dtype.kind not in "fiub":
        raise TypeError(expected(name, "real numbers", f"dtype {host.dtype}"))
    return np.array(host, like.dtype)


_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}


def rounding(x: Any, least: float) -> float:
    """eps of what foreign code returned, where that is coarser than ``least``."""
    return max(_EPS.get(str(getattr(x, "dtype", "")).removeprefix("torch."), 0.0), least)


def empty_like(x: ArrayLike, shape: int | tuple[int, ...] | None = None) -> ArrayLike:
    """An array of the kind, dtype and device of ``x``, with its shape unless one is given."""
    check_array("x", x)
    wanted = tuple(x.shape) if shape is None else _lengths(shape)
    if isinstance(x, Vector):
        return Vector(wanted, x.dtype, x.device)
    if hasattr(x, "new_empty"):
        return x.detach().new_empty(wanted)
    return np.empty(wanted, x.dtype)


def in_float64(x: ArrayLike) -> ArrayLike:
    """A copy in float64, of the same kind on the same device."""
    if isinstance(x, Vector):
        return Vector.from_numpy(x.numpy().astype(np.float64), x.device)
    return x.double() if hasattr(x, "double") else x.astype(np.float64)


def generator(rng: Any) -> np.random.Generator:
    """What ``rng=`` stands for, everywhere.

    Raises
    ------
    TypeError, ValueError
        If NumPy makes no generator of it.
    """
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        what = "an int from 0, a numpy.random.Generator or None"
        raise type(error)(expected("rng", what, brief(rng))) from None


def random(like: ArrayLike, rng: int | np.random.Generator | None = None) -> ArrayLike:
    """A standard normal vector of the kind of ``like``, drawn on the host so that devices agree."""
    check_array("like", like)
    drawn = generator(rng).standard_normal(tuple(like.shape))
    if isinstance(like, Vector):
        return Vector.from_numpy(drawn.astype(like.dtype), like.device)
    if hasattr(like, "new_tensor"):
        return like.detach().new_tensor(drawn)
    return drawn.astype(like.dtype)


def gather(x: ArrayLike) -> NDArray[Any]:
    """A copy on the host, as a NumPy array."""
    check_array("x", x)
    if isinstance(x, Vector):
        return x.numpy()
    if device_of(x) == "cuda":
        return gather(x.cpu())
    return np.array(np.from_dlpack(x.detach() if hasattr(x, "detach") else x))
