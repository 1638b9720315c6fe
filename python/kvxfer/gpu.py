"""GPU memory that a region can be made of: tensors of an engine, as they are."""

from typing import TYPE_CHECKING, Any, List, NoReturn, Optional, Sequence, Tuple, Union

from . import _arrays, errors
from ._native import ffi
from .region import Memory, Shape

if TYPE_CHECKING:
    import numpy
    import torch

__all__ = ["GpuMemory"]

Piece = Union[int, Any, Tuple[Any, int]]


class GpuMemory(Memory):
    """Pieces of GPU memory as one region: made by :meth:`kvxfer.Memory.of_gpu`. The pieces follow
    each other without gaps, the second one at offset ``pieces[0].nbytes`` of the region; all are of
    one device. Holds the tensors, not what a bare address stands for.

    It has no address in this process that the CPU could use: ``numpy()``, ``torch()``, ``buffer``
    and ``address`` raise Unsupported. The layout helpers take the tensors that lie in it.

    Args:
        pieces: (address, bytes) of each.
        in_use: see ``Memory.of_gpu``.
    """

    def __init__(self, pieces: Sequence[Tuple[int, int]], keep: Sequence[Any],
                 in_use: bool) -> None:
        if not pieces or any(nbytes <= 0 for _, nbytes in pieces):
            raise errors.Invalid("GPU memory needs pieces, each of more than 0 bytes")
        self._fd = -1
        self._pieces: List[Tuple[int, int]] = list(pieces)
        self._keep = list(keep)
        self._in_use = in_use
        self._nbytes = sum(nbytes for _, nbytes in pieces)

    @property
    def pieces(self) -> Tuple[Tuple[int, int], ...]:
        """(address, bytes) of each piece, in the order of the region's offsets."""
        return tuple(self._pieces)

    @property
    def address(self) -> int:
        self._refuse()

    @property
    def buffer(self) -> memoryview:
        self._refuse()

    def numpy(self, dtype: Any = "uint8", shape: Optional[Shape] = None,
              offset: int = 0) -> "numpy.ndarray[Any, Any]":
        self._refuse()

    def torch(self, dtype: "torch.dtype", shape: Optional[Shape] = None,
              offset: int = 0) -> "torch.Tensor":
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise errors.Unsupported("GPU memory cannot be seen by the CPU: use the tensors that it "
                                 "was made of")

    def _view(self, tensor: Any) -> _arrays.View:
        return _arrays.gpu_view(tensor)

    def _place(self, seen: _arrays.View) -> int:
        low, high = _arrays.extent(seen)
        start = 0
        for address, nbytes in self._pieces:
            at = seen.address - address
            if at + low >= 0 and at + high <= nbytes and 0 not in seen.shape:
                return start + at
            start += nbytes
        raise errors.Invalid(f"the tensor (shape {seen.shape}) does not lie wholly in one of the "
                             f"{len(self._pieces)} pieces of this GPU memory")

    def _segments(self) -> Any:
        segments = ffi.new("struct kvxfer_gpu_segment[]", len(self._pieces))
        for segment, (address, nbytes) in zip(segments, self._pieces):
            segment.ptr = ffi.cast("void *", address)
            segment.len_bytes = nbytes
        return segments


def of_pieces(pieces: Sequence[Piece], in_use: bool) -> GpuMemory:
    """See ``Memory.of_gpu``. A piece: a tensor, or (address or tensor, bytes)."""
    spans = []
    keep = []
    for piece in pieces:
        what, nbytes = piece if isinstance(piece, tuple) else (piece, None)
        if isinstance(what, int):
            if nbytes is None:
                raise errors.Invalid("an address needs its number of bytes: (address, nbytes)")
            spans.append((what, nbytes))
            continue
        seen = _arrays.gpu_view(what)
        low, high = _arrays.extent(seen)
        spans.append((seen.address + low, high - low if nbytes is None else nbytes))
        keep.append(what)
    return GpuMemory(spans, keep, in_use)
