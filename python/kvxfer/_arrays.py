"""Numbers and tensors of numpy, torch and plain Python, seen as memory. Copies only where the type
asks for it; no loop over items in Python. Knows neither numpy nor torch by import."""

from typing import Any, NamedTuple, Optional, Tuple

from . import errors
from ._native import ffi, lib

_INTS = frozenset("bBhHiIlLqQ")
_TORCH_INTS = {"torch.uint8": (1, 0), "torch.int8": (1, 1), "torch.int16": (2, 1),
               "torch.uint16": (2, 0), "torch.int32": (4, 1), "torch.uint32": (4, 0),
               "torch.int64": (8, 1), "torch.uint64": (8, 0)}


class View(NamedTuple):
    """A tensor: where it lies and how. Strides are bytes. kind is numpy's: "i", "u", "f"..."""

    address: int
    item_bytes: int
    kind: str
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]


def view(tensor: Any) -> View:
    """Of a numpy array or torch tensor. Raises Unsupported for memory of a device, Invalid for
    anything else."""
    if hasattr(tensor, "data_ptr"):
        return _torch_view(tensor)
    interface = getattr(tensor, "__array_interface__", None)
    if interface is None:
        if hasattr(tensor, "__cuda_array_interface__"):
            raise errors.Unsupported(_NO_GPU)
        raise errors.Invalid(f"{type(tensor).__name__} is neither a numpy array nor a torch tensor")
    typestr = interface["typestr"]
    if typestr[0] == ">" and typestr[2:] != "1":
        raise errors.Invalid(f"array of {typestr}: bytes are in the wrong order for this machine")
    shape = interface["shape"]
    item_bytes = int(typestr[2:])
    strides = interface["strides"]
    if strides is None:
        strides = _dense_strides(shape, item_bytes)
    return View(interface["data"][0], item_bytes, typestr[1], shape, strides)


def gpu_view(tensor: Any) -> View:
    """Of a torch tensor or another array that lies in the memory of a GPU. Raises Invalid for what
    is none."""
    if hasattr(tensor, "data_ptr"):
        if tensor.device.type == "cpu":
            raise errors.Invalid("the tensor lies in CPU memory, not in that of a GPU")
        return _torch_numbers(tensor)
    interface = getattr(tensor, "__cuda_array_interface__", None)
    if interface is None:
        raise errors.Invalid(f"{type(tensor).__name__} is no tensor of a GPU")
    shape = interface["shape"]
    item_bytes = int(interface["typestr"][2:])
    strides = interface.get("strides") or _dense_strides(shape, item_bytes)
    return View(interface["data"][0], item_bytes, interface["typestr"][1], shape, strides)


def extent(seen: View) -> Tuple[int, int]:
    """Where its bytes begin and end, counted from its address."""
    low = sum(min((n - 1) * s, 0) for n, s in zip(seen.shape, seen.strides))
    high = sum(max((n - 1) * s, 0) for n, s in zip(seen.shape, seen.strides))
    return low, high + seen.item_bytes


_NO_GPU = ("the tensor lies in the memory of a GPU: for a region use kvxfer.Memory.of_gpu(tensor), "
           "for lists of numbers CPU memory")


def _torch_view(tensor: Any) -> View:
    if tensor.device.type != "cpu":
        raise errors.Unsupported(_NO_GPU)
    return _torch_numbers(tensor)


def _torch_numbers(tensor: Any) -> View:
    item_bytes = tensor.element_size()
    _, signed = _TORCH_INTS.get(str(tensor.dtype), (0, -1))
    kind = "f" if signed < 0 else "i" if signed else "u"
    strides = tuple(stride * item_bytes for stride in tensor.stride())
    return View(tensor.data_ptr(), item_bytes, kind, tuple(tensor.shape), strides)


def _dense_strides(shape: Tuple[int, ...], item_bytes: int) -> Tuple[int, ...]:
    strides = []
    for n in reversed(shape):
        strides.append(item_bytes)
        item_bytes *= n
    return tuple(reversed(strides))


def _is_tensor(numbers: Any) -> bool:
    return hasattr(numbers, "__array_interface__") or hasattr(numbers, "data_ptr")


def _ints(numbers: Any, what: str) -> View:
    seen = view(numbers)
    if seen.kind not in "iu" or len(seen.shape) != 1:
        raise errors.Invalid(f"{what} must be a one-dimensional array of integers, not of shape "
                             f"{seen.shape}, kind {seen.kind!r}")
    return seen


def _from_list(ctype: str, numbers: Any, what: str) -> Tuple[Any, int]:
    try:
        items = numbers if isinstance(numbers, (list, tuple)) else list(numbers)
        return ffi.new(ctype, items), len(items)
    except (OverflowError, TypeError) as err:
        raise errors.Invalid(f"{what}: {err}") from None


def ids(numbers: Any, what: str) -> Tuple[Any, int]:
    """Block ids as (uint32_t *, n). int32 and uint32 without gaps are used where they lie (a
    negative id is then out of range for the daemon), other integers are copied and checked. The
    result is valid while ``numbers`` and the pointer live."""
    return _numbers(numbers, what, 4, "uint32_t[]", lib.kvxpy_ids)


def offsets(numbers: Any, what: str) -> Tuple[Any, int]:
    """As ids(), for offsets and lengths: (uint64_t *, n)."""
    return _numbers(numbers, what, 8, "uint64_t[]", lib.kvxpy_offsets)


def _numbers(numbers: Any, what: str, item_bytes: int, ctype: str,
             copier: Any) -> Tuple[Any, int]:
    if isinstance(numbers, (list, tuple)):
        return _from_list(ctype, numbers, what)
    flat = _flat(numbers)
    if flat is not None:
        n = len(flat)
        memory = ffi.from_buffer(flat)
        if flat.itemsize == item_bytes:
            return ffi.from_buffer(ctype, flat), n
        seen = View(int(ffi.cast("uintptr_t", memory)), flat.itemsize,
                    "i" if flat.format.islower() else "u", (n,), (flat.itemsize,))
    elif _is_tensor(numbers):
        seen = _ints(numbers, what)
        n = seen.shape[0]
        if seen.item_bytes == item_bytes and (seen.strides[0] == item_bytes or n <= 1):
            return ffi.cast(ctype.replace("[]", "*"), seen.address), n
    else:
        return _from_list(ctype, numbers, what)
    out = ffi.new(ctype, max(n, 1))
    _copy(copier, seen, out, what)
    return out, n


def _flat(numbers: Any) -> Optional[memoryview]:
    """Integers without gaps by the buffer protocol, at an eighth of the cost of
    __array_interface__; None: not that way."""
    try:
        flat = memoryview(numbers)
    except (TypeError, ValueError):
        return None
    if flat.ndim != 1 or not flat.c_contiguous or flat.format not in _INTS:
        return None
    return flat


def _copy(copier: Any, seen: View, out: Any, what: str) -> None:
    bad = copier(seen.address, seen.item_bytes, seen.kind == "i", seen.strides[0], seen.shape[0],
                 out)
    if bad >= 0:
        raise errors.Invalid(f"{what}[{bad}] is negative or too large")
