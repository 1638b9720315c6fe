"""A rank's KV memory: which plane of which region every part of every layer is; and how tensors
that an engine has already made get into shared memory."""

import mmap
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Sequence, Tuple

from .. import layout as layouts
from ..errors import Invalid, Unsupported
from ..layout import Layout, Plane
from ..region import Memory
from .geometry import Group, PlaneKey, block_bytes, check_groups, plane_keys

if TYPE_CHECKING:
    import torch

__all__ = ["Pool", "memory_of", "to_shared"]


class Pool:
    """The groups of a rank and where their planes lie: see :meth:`of`.

    Attributes:
        groups: as given.
        memories: the memories that become regions, in the order of their first plane.
        layouts: of each of them.
        regions: for each plane, in the order of ``plane_keys()``, the index of its memory.
    """

    def __init__(self, groups: Sequence[Group], memories: Sequence[Memory],
                 layouts: Sequence[Layout], regions: Sequence[int]) -> None:
        self.groups = tuple(groups)
        self.memories = tuple(memories)
        self.layouts = tuple(layouts)
        self.regions = tuple(regions)

    @classmethod
    def of(cls, groups: Sequence[Group],
           planes: Mapping[PlaneKey, Tuple[Any, ...]]) -> "Pool":
        """A pool of tensors.

        Args:
            groups: the KV-cache groups; their index is what ``add``, ``expect``, ... call a group.
            planes: for every (group index, layer index in the group, part index) the memory and the
                tensor in it (numpy, or torch on the CPU) whose first dimension are the blocks. The
                bytes of one block must lie together; the other dimensions may be in any order, and
                blocks may have gaps between them: of [2, n_blocks, ...] give ``t[0]`` and ``t[1]``,
                of [n_blocks, 2, ...] ``t[:, 0]`` and ``t[:, 1]`` (or the whole, with
                ``Part.copies`` 2).

        Raises Invalid where a plane is missing, does not lie in its memory, or has not the bytes
        and blocks that the group says.
        """
        check_groups(groups)
        memories: List[Memory] = []
        rows: List[List[Plane]] = []
        regions = []
        for key in plane_keys(groups):
            if key not in planes:
                raise Invalid(f"no plane for (group, layer, part) {key}")
            memory = planes[key][0]
            region = next((i for i, other in enumerate(memories) if other is memory), len(memories))
            if region == len(memories):
                memories.append(memory)
                rows.append([])
            rows[region].append(_plane(groups[key[0]], key, *planes[key]))
            regions.append(region)
        return cls(groups, memories, [Layout(row) for row in rows], regions)


def _plane(group: Group, key: PlaneKey, memory: Memory, *place: Any) -> Plane:
    _, layer, p = key
    part = group.parts[p]
    want = block_bytes(group, part)
    where = f"group {group.name!r}, layer {group.layers[layer]!r}, {part.kind!r}"
    name = f"{layer}.{part.kind}"[-32:]
    if len(place) == 2:
        offset, stride = place
        end = offset + (group.n_blocks - 1) * stride + want
        if offset < 0 or stride < want or end > memory.nbytes:
            raise Invalid(f"{where}: {group.n_blocks} blocks of {want} bytes, {stride} bytes "
                          f"apart, at {offset} of a memory of {memory.nbytes} bytes")
        return Plane(name, offset, stride, want, group.n_blocks)
    plane = layouts.plane(memory, *place, name=name)
    if plane.block_bytes != want or plane.n_blocks < group.n_blocks:
        raise Invalid(f"{where}: {plane.n_blocks} blocks of {plane.block_bytes} bytes in the "
                      f"tensor, but {group.n_blocks} of {want} by the group")
    return plane._replace(n_blocks=group.n_blocks)


def memory_of(tensors: Iterable["torch.Tensor"], name: str = "kv") -> Memory:
    """A memory in which all of an engine's KV tensors lie: tensors of a GPU as they are
    (``Memory.of_gpu``), those of the CPU after ``to_shared``. Raises as the two."""
    given = list(tensors)
    if given and all(tensor.device.type != "cpu" for tensor in given):
        return Memory.of_gpu(*given)
    return to_shared(given, name)


def to_shared(tensors: Iterable["torch.Tensor"], name: str = "kv") -> Memory:
    """Moves CPU tensors into one new Memory, in place: every tensor given keeps its identity,
    shape, strides and content, and refers to shared memory afterwards (``tensor.set_``). Views of
    one storage stay views of one storage, if all of them are given; others that are not given keep
    the old one. Blocks for a copy. Raises NoMemory, Invalid (no tensors), Unsupported (a GPU's)."""
    import torch

    given = list(tensors)
    if not given:
        raise Invalid("no tensors")
    places: Dict[int, int] = {}
    nbytes = 0
    for tensor in given:
        if tensor.device.type != "cpu":
            raise Unsupported("only CPU tensors can be moved into shared memory")
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in places:
            places[storage.data_ptr()] = nbytes
            nbytes += -(-storage.nbytes() // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = Memory(nbytes, name=name)
    moved: Dict[int, Any] = {}
    with torch.no_grad():
        for tensor in given:
            old = tensor.untyped_storage()
            at = old.data_ptr()
            if at not in moved:
                new = memory.torch(torch.uint8, old.nbytes(), places[at])
                new.copy_(torch.empty(0, dtype=torch.uint8).set_(old, 0, (old.nbytes(),), (1,)))
                moved[at] = new.untyped_storage(), new.storage_offset()
            storage, start = moved[at]
            tensor.set_(storage, start // tensor.element_size() + tensor.storage_offset(),
                        tensor.size(), tensor.stride())
    return memory
