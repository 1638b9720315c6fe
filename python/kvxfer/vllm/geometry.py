"""vLLM's KV cache in the words of kvxfer.pd: groups of layers, and which tensor is which part.

vLLM gives one tensor [blocks, heads, tokens, content] per layer, in any order in memory; content is
K and V of a head and token side by side. Only shapes and strides are looked at. One group of vLLM
is one group here, or several where its layers differ in shape; where the attention kernels use smaller
blocks than the block tables, and heads lie outside tokens, the kernels' blocks are the unit, and
every block of a table is ``ratio`` of them.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .. import errors
from ..pd import Group, Part
from . import states

if TYPE_CHECKING:
    import torch

    from vllm.v1.kv_cache_interface import KVCacheConfig

Run = Tuple[int, List[int]]  #: first logical block, block ids

__all__ = ["Layout", "Place", "Shards", "describe"]

#: Backends whose pages of two slots (K, V) have the heads outermost in each.
_SLOTS_BY_HEAD = frozenset(("ROCM_ATTN", "ROCM_AITER_FA"))


class Shards(NamedTuple):
    """This rank among those that share a layer's heads."""

    rank: int
    size: int
    total_heads: int  #: KV heads of the model
    backends: Tuple[str, ...] = ()
    #: Of recurrent layers: see states.Sharing.
    columns_first: bool = True
    state_groups: int = 0


class Place(NamedTuple):
    """Where a group of vLLM is found among ours."""

    group: int
    ratio: int  #: blocks here per block of vLLM's tables


class Layout(NamedTuple):
    """A rank's KV cache."""

    groups: Tuple[Group, ...]
    #: (group, layer, part) -> tensor [blocks, ...]
    planes: Dict[Tuple[int, int, int], "torch.Tensor"]
    #: Per transfer group of vLLM.
    places: Tuple[Tuple[Place, ...], ...]
    #: Layer name -> group, index in it.
    layers: Dict[str, Tuple[int, int]]
    #: Transfer group of each group.
    origin: Tuple[int, ...]

    def own(self, blocks: Mapping[int, Run]) -> Dict[int, Run]:
        """Blocks of vLLM's transfer groups as blocks of our groups."""
        return {place.group: self.expand(place.group, run)
                for index, run in blocks.items() for place in self.places[index]}

    def expand(self, group: int, run: Run) -> Run:
        """Blocks of vLLM's tables as blocks of a group of ours."""
        ratio = self._ratio(group)
        if ratio == 1:
            return run
        return run[0] * ratio, [block * ratio + i for block in run[1] for i in range(ratio)]

    def table_blocks(self, group: int, blocks: Sequence[int]) -> List[int]:
        """The blocks of vLLM's tables that blocks of a group of ours belong to."""
        ratio = self._ratio(group)
        return sorted({int(block) // ratio for block in blocks})

    def _ratio(self, group: int) -> int:
        return next(place.ratio for place in self.places[self.origin[group]]
                    if place.group == group)


class _Kind(NamedTuple):
    """What layers must have in common to be one group here."""

    block_tokens: int
    n_blocks: int
    ratio: int
    parts: Tuple[Part, ...]


def describe(kv_cache_config: "KVCacheConfig", tensors: Mapping[str, "torch.Tensor"],
             shards: Shards) -> Layout:
    """The layout of ``tensors`` (layer name -> [blocks, heads, tokens, content]; other layers than
    those of the transfer groups are left out). Raises Unsupported, with the layer."""
    groups: List[Group] = []
    planes: Dict[Tuple[int, int, int], "torch.Tensor"] = {}
    places: List[Tuple[Place, ...]] = []
    layers: Dict[str, Tuple[int, int]] = {}
    origin: List[int] = []
    for index, group in enumerate(kv_cache_config.transfer_groups):
        found: Dict[_Kind, List[Tuple[str, List["torch.Tensor"]]]] = {}
        for name in group.layer_names:
            if name in tensors:
                kind, parts = _layer(name, _spec(group, name), tensors[name],
                                     kv_cache_config.num_blocks, shards)
                found.setdefault(kind, []).append((name, parts))
        here = []
        for sub, (kind, members) in enumerate(found.items()):
            here.append(Place(len(groups), kind.ratio))
            for layer, (name, parts) in enumerate(members):
                layers[name] = (len(groups), layer)
                for part, tensor in enumerate(parts):
                    planes[len(groups), layer, part] = tensor
            origin.append(index)
            groups.append(Group(f"{index}.{sub}", tuple(name for name, _ in members),
                                kind.block_tokens, kind.n_blocks, kind.parts))
        places.append(tuple(here))
    if not groups:
        raise errors.Unsupported("the engine has no KV cache that can be transferred")
    return Layout(tuple(groups), planes, tuple(places), layers, tuple(origin))


def _spec(group: Any, name: str) -> Any:
    inner = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return inner[name] if inner else group.kv_cache_spec


def _layer(name: str, spec: Any, tensor: "torch.Tensor", n_blocks: int,
           shards: Shards) -> Tuple[_Kind, List["torch.Tensor"]]:
    if not spec.has_layer_views or tensor.dim() != 4 or tensor.shape[0] % n_blocks:
        raise errors.Unsupported(
            f"layer {name}: a KV cache of shape {tuple(tensor.shape)} ({type(spec).__name__}, "
            f"{n_blocks} blocks) is none that kvxfer knows: one tensor [blocks, heads, tokens, "
            "content] per layer")
    if hasattr(spec, "mamba_type"):
        return _state(spec, tensor, shards)
    return _attention(name, spec, tensor, tensor.shape[0] // n_blocks, shards)


def _state(spec: Any, tensor: "torch.Tensor",
           shards: Shards) -> Tuple[_Kind, List["torch.Tensor"]]:
    size, rank = (1, 0) if spec.tp_replicated else (shards.size, shards.rank)
    sharing = states.Sharing(rank, size, shards.columns_first, shards.state_groups)
    pieces = states.parts_of(spec.mamba_type.name, spec.shapes,
                             [dtype.itemsize for dtype in spec.dtypes], sharing)
    flat, item = tensor.flatten(1), tensor.element_size()
    views = []
    for part, offset in pieces:
        nbytes = part.unit_bytes * (part.units if part.order else 1)
        views.append(flat[:, offset // item:(offset + nbytes) // item])
    return _Kind(0, tensor.shape[0], 1, tuple(part for part, _ in pieces)), views


def _attention(name: str, spec: Any, tensor: "torch.Tensor", ratio: int,
               shards: Shards) -> Tuple[_Kind, List["torch.Tensor"]]:
    _, slots, tokens, content = tensor.shape
    block_tokens = spec.block_size // ratio
    content_bytes = content * tensor.element_size()
    n_shards, first, known = _share(spec, shards)
    heads, total = spec.num_kv_heads, spec.num_kv_heads * n_shards
    if n_shards == 1 and heads == 1:
        return _whole("latent", tensor, spec.block_size, ratio, 0, 1)
    outside = tensor.stride(1) >= tensor.stride(2) * tokens and tokens > 1
    if slots == heads and tokens == block_tokens and known:
        if not outside:
            part = Part("kv", content_bytes, heads, first * heads, total, "NHD")
            return _merged(part, tensor, spec.block_size, ratio)
        if heads == 1 or tensor.stride(1) == tokens * content:
            part = Part("kv", content_bytes, heads, first * heads, total, "HND")
            return _Kind(block_tokens, tensor.shape[0], ratio, (part,)), [tensor]
        parts = [Part("kv", content_bytes, 1, first * heads + h, total, "HND")
                 for h in range(heads)]
        return (_Kind(block_tokens, tensor.shape[0], ratio, tuple(parts)),
                [tensor[:, h] for h in range(heads)])
    if (slots == 2 and known and tokens == block_tokens and content_bytes % heads == 0
            and set(shards.backends) <= _SLOTS_BY_HEAD and shards.backends):
        parts = [Part(kind, content_bytes // heads, heads, first * heads, total, "HND")
                 for kind in ("k", "v")]
        return (_Kind(block_tokens, tensor.shape[0], ratio, tuple(parts)),
                [tensor[:, 0], tensor[:, 1]])
    if _dense(tensor):
        return _whole("block", tensor, spec.block_size, ratio, first, n_shards)
    parts = [Part(f"slot{s}", tokens * content_bytes, 1, first, n_shards, "")
             for s in range(slots)]
    return (_Kind(block_tokens, tensor.shape[0], ratio, tuple(parts)),
            [tensor[:, s] for s in range(slots)])


def _whole(kind: str, tensor: "torch.Tensor", block_tokens: int, ratio: int, first: int,
           n_shards: int) -> Tuple[_Kind, List["torch.Tensor"]]:
    """Blocks that only go as a whole: to ranks with the same shard."""
    nbytes = tensor[0].numel() * tensor.element_size() * ratio
    part = Part(kind, nbytes, 1, first, n_shards, "")
    return _merged(part, tensor, block_tokens, ratio)


def _merged(part: Part, tensor: "torch.Tensor", block_tokens: int,
            ratio: int) -> Tuple[_Kind, List["torch.Tensor"]]:
    """The kernels' blocks of one table block lie behind each other: as one block."""
    n_blocks = tensor.shape[0] // ratio
    whole = tensor.view((n_blocks, ratio) + tensor.shape[1:]) if ratio > 1 else tensor
    return _Kind(block_tokens, n_blocks, 1, (part,)), [whole]


def _share(spec: Any, shards: Shards) -> Tuple[int, int, bool]:
    """(number of different shards of the heads, ours, whether that is known for certain)."""
    most: Optional[int] = getattr(spec, "max_tp_shards", None)
    heads = spec.num_kv_heads
    if most is not None:
        n = min(shards.size, most)
    elif heads == max(1, shards.total_heads // shards.size):
        n = min(shards.size, shards.total_heads)
    else:  # a layer with heads of its own: sharded, if it has more than one
        n = shards.size
        return n, shards.rank, heads > 1 or shards.size == 1
    return n, shards.rank * n // shards.size, True


def _dense(tensor: "torch.Tensor") -> bool:
    block = tensor[0]
    expect = 1
    for stride, n in sorted(zip(block.stride(), block.shape)):
        if n > 1 and stride != expect:
            return False
        expect *= n
    return True
