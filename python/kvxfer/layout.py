"""Layouts: which bytes of a region are which block.

A plane is one tensor's worth of blocks: block b is [offset + b * block_stride, + block_bytes) of
the region. The helpers make planes from the engine's own tensors (numpy arrays or CPU torch
tensors), which must lie in a :class:`kvxfer.Memory`::

    memory = kvxfer.Memory(nbytes)
    kv = [memory.torch(torch.bfloat16, shape, offset=...) for layer in layers]
    region = client.register(memory, layout=layout.split_kv(memory, kv), access="w")

Every helper takes one tensor per layer, in an order that both sides share, and needs only that the
bytes of one block lie together: the other dimensions may be in any order (NHD, HND, permuted
views), and blocks may have gaps between them. All raise Invalid when a tensor does not lie in the
memory or its blocks do not lie together, and Unsupported for tensors of a GPU where the memory is
not one of :meth:`kvxfer.Memory.of_gpu`.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import _arrays, errors
from ._native import ffi

if TYPE_CHECKING:
    from .region import Memory

__all__ = ["Plane", "Layout", "plane", "mla", "split_kv", "interleaved_kv", "state", "join"]


class Plane(NamedTuple):
    """Block b is [offset + b * block_stride, + block_bytes) of the region. All but the name and
    the count in bytes."""

    name: str  #: at most 32 bytes
    offset: int
    block_stride: int  #: >= block_bytes
    block_bytes: int  #: > 0
    n_blocks: int = 0  #: 0: as many as fit


class Layout:
    """The planes of a region, addressed by their index, and named groups of them.

    Args:
        planes: in an order that the two sides share.
        groups: name -> range of plane indexes.
    """

    def __init__(self, planes: Sequence[Plane],
                 groups: Optional[Mapping[str, range]] = None) -> None:
        self.planes: Tuple[Plane, ...] = tuple(planes)
        self.groups: Dict[str, range] = dict(groups or {})

    def group(self, name: str) -> range:
        """The planes of a group, for ``Blocks(planes=...)``. Raises Invalid."""
        if name not in self.groups:
            raise errors.Invalid(f"no group {name!r}: there are {sorted(self.groups)}")
        return self.groups[name]

    def _fill(self, keep: List[Any]) -> Any:
        planes = ffi.new("struct kvxfer_plane[]", len(self.planes))
        try:
            for to, plane_ in zip(planes, self.planes):
                keep.append(ffi.new("char[]", plane_.name.encode()))
                to.name = keep[-1]
                to.offset, to.block_stride = plane_.offset, plane_.block_stride
                to.block_bytes, to.n_blocks = plane_.block_bytes, plane_.n_blocks
        except OverflowError as err:
            raise errors.Invalid(f"{plane_}: {err}") from None
        out = ffi.new("struct kvxfer_layout *", (planes, len(self.planes)))
        keep += (planes, out)
        return out

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Layout) and self.planes == other.planes
                and self.groups == other.groups)

    def __repr__(self) -> str:
        return f"<Layout of {len(self.planes)} planes, groups {list(self.groups)}>"


def plane(memory: "Memory", tensor: Any, *, name: str = "", block_dim: int = 0) -> Plane:
    """One plane: ``tensor``'s blocks are its items along ``block_dim``, each of which must be
    without gaps (its dimensions in any order)."""
    return _plane(memory, memory._view(tensor), name, block_dim)


def mla(memory: "Memory", tensors: Sequence[Any], *, name: str = "layer{}.kv") -> Layout:
    """MLA: one latent tensor [n_blocks, block_tokens, latent] per layer; plane l is layer l."""
    return Layout([plane(memory, t, name=name.format(i)) for i, t in enumerate(tensors)])


def split_kv(memory: "Memory", tensors: Sequence[Any]) -> Layout:
    """K and V apart: per layer one tensor [2, n_blocks, ...], or a pair (K, V) of tensors
    [n_blocks, ...]. Plane 2 * l is layer l's K, 2 * l + 1 its V."""
    return _kv(memory, tensors, 0)


def interleaved_kv(memory: "Memory", tensors: Sequence[Any]) -> Layout:
    """K and V of a block beside each other: per layer one tensor [n_blocks, 2, ...]. Planes as of
    ``split_kv``, so that the two kinds can be transferred into each other."""
    return _kv(memory, tensors, 1)


def state(memory: "Memory", tensors: Sequence[Any], *, name: str = "state{}") -> Layout:
    """States of hybrid models (Mamba's conv and ssm, ...): per tensor one plane, whose blocks are
    the slots of the first dimension. Types, shapes and gaps between slots may differ."""
    return Layout([plane(memory, t, name=name.format(i)) for i, t in enumerate(tensors)])


def join(groups: Mapping[str, Layout]) -> Layout:
    """One layout of several KV-cache groups, with block sizes of their own, in the order given;
    ``Blocks(planes=layout.group(name))`` names the planes of one."""
    planes: List[Plane] = []
    ranges = {}
    for name, layout in groups.items():
        ranges[name] = range(len(planes), len(planes) + len(layout.planes))
        planes += layout.planes
    return Layout(planes, ranges)


def _kv(memory: "Memory", tensors: Sequence[Any], kv_dim: int) -> Layout:
    planes = []
    for layer, tensor in enumerate(tensors):
        if isinstance(tensor, (tuple, list)):
            pair = [memory._view(t) for t in tensor]
        else:
            seen = memory._view(tensor)
            if len(seen.shape) < 3 or seen.shape[kv_dim] != 2:
                raise errors.Invalid(f"layer {layer}: shape {seen.shape} has no dimension "
                                     f"{kv_dim} of 2 (K and V)")
            pair = [_select(seen, kv_dim, i) for i in (0, 1)]
        if len(pair) != 2:
            raise errors.Invalid(f"layer {layer}: {len(pair)} tensors, not K and V")
        for name, half in zip("kv", pair):
            planes.append(_plane(memory, half, f"layer{layer}.{name}", 0))
    return Layout(planes)


def _select(seen: _arrays.View, dim: int, index: int) -> _arrays.View:
    return seen._replace(address=seen.address + index * seen.strides[dim],
                         shape=seen.shape[:dim] + seen.shape[dim + 1:],
                         strides=seen.strides[:dim] + seen.strides[dim + 1:])


def _plane(memory: "Memory", seen: _arrays.View, name: str, block_dim: int) -> Plane:
    if not -len(seen.shape) <= block_dim < len(seen.shape):
        raise errors.Invalid(f"plane {name!r}: shape {seen.shape} has no dimension {block_dim}")
    offset = memory._place(seen)
    block = _select(seen, block_dim % len(seen.shape), 0)
    block_bytes = seen.item_bytes
    for stride, n in sorted(zip(block.strides, block.shape)):
        if n > 1 and stride != block_bytes:
            raise errors.Invalid(f"plane {name!r}: shape {seen.shape} with strides {seen.strides} "
                                 "(bytes): the bytes of one block do not lie together")
        block_bytes *= n
    n_blocks, stride = seen.shape[block_dim], seen.strides[block_dim]
    if n_blocks == 1:
        stride = block_bytes
    if stride < block_bytes:
        raise errors.Invalid(f"plane {name!r}: blocks of {block_bytes} bytes, {stride} bytes apart")
    return Plane(name, offset, stride, block_bytes, n_blocks)
