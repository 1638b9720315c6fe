"""What the buffers of a KVArgs are made of, in the words of kvxfer.pd: groups, layers, parts.

KVArgs has three kinds of buffers, all addressed by item (a page, a row, a slot): K/V, states (one
*component* per kind), and metadata ("aux"). Each becomes groups whose layers are matched by name
between the two sides, so that pipeline stages, draft models and different TP sizes fit together:

- K/V of plain attention is cut by heads where the page is token-major or head-major; MLA's latents
  are equal on all TP ranks.
- Mamba states are cut by their sliced dimension, convolution states by each of their sub-blocks.
- What can be cut in neither way belongs to one TP rank: ranks of engines with other TP sizes do not
  fit (``Layout.tp_bound`` says which).

Pure values; the scheduler's thread makes them once, while the engine starts.
"""

import zlib
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .. import errors
from ..pd import Group, Part, Pool
from .memory import Buffer, places

__all__ = ["Facts", "Heads", "Layout", "Place", "describe"]

#: States that MLA models hold whole and equal on every TP rank.
_LATENT_STATES = ("swa", "dsa", "dsa_tail", "swa_ring", "c128_state", "request_row")


class Heads(NamedTuple):
    """How the pages of an attention pool are cut."""

    units: int  #: KV heads of this rank
    first: int
    total: int  #: of the model
    order: str  #: "NHD" or "HND"


class Facts(NamedTuple):
    """What KVArgs does not say, found in the pools when the plugin sees them (:mod:`.plugin`)."""

    kv: Optional[Heads] = None  #: None: pages cannot be cut
    swa: Optional[Heads] = None
    draft: Optional[Heads] = None
    start_layer: Optional[int] = None
    tail_slots: int = 0  #: slots in a row of DSA's kpool tail; 0: unknown
    #: (first byte, end) of convolution states: they are made of sub-blocks, and cannot be cut where
    #: KVArgs does not name them.
    conv: Tuple[Tuple[int, int], ...] = ()


class Place(NamedTuple):
    """This rank among its engine's."""

    tp: int = 0
    tp_size: int = 1
    pp: int = 0
    pp_size: int = 1


class _Plane(NamedTuple):
    part: Part
    address: int  #: of block 0
    stride: int  #: bytes from block to block
    buffer: Buffer  #: that it lies in


class Layout(NamedTuple):
    """What :func:`describe` finds.

    ``kv``, ``aux`` and ``states[i]`` (component i of KVArgs) are indexes of groups: those that the
    indices of a request address together.
    """

    groups: Tuple[Group, ...]
    planes: Dict[Tuple[int, int, int], Tuple[Any, ...]]
    kv: Tuple[int, ...]
    aux: Tuple[int, ...]
    states: Tuple[Tuple[int, ...], ...]
    #: What cannot be moved between engines of different TP sizes.
    tp_bound: Tuple[str, ...]
    #: Slots in a row of the component, for those that are addressed by slot; 0: addressed by item.
    slots: Tuple[int, ...]

    def pool(self) -> Pool:
        return Pool.of(self.groups, self.planes)

    def state_ids(self, indices: Optional[Sequence[Any]]) -> List[Any]:
        """SGLang's indices of each state component as block ids; empty where there are none."""
        out = []
        for i, slots in enumerate(self.slots):
            given = indices[i] if indices is not None and i < len(indices) else None
            ids: Any = np.asarray(() if given is None else given, np.int32).ravel()
            out.append(_tail_ids(ids, slots) if slots and len(ids) else ids)
        return out


def _tail_ids(six: Any, slots: int) -> Any:
    """[row, start, n, start, n, slots of a row]: the live slots of a ring, in order."""
    row, start, n, again, more, size = (int(x) for x in six)
    if size != slots:
        raise errors.LayoutMismatch(f"DSA's kpool tail: {size} slots in a row, not {slots}")
    return np.concatenate([np.arange(start, start + n), np.arange(again, again + more)]
                          ).astype(np.int32) + row * slots


class _Maker:
    """Sorts layers into groups: layers that are alike share one."""

    def __init__(self, where: Place) -> None:
        self.where = where
        self.groups: List[Group] = []
        self.planes: Dict[Tuple[int, int, int], _Plane] = {}
        self.tp_bound: List[str] = []

    def add(self, name: str, layers: Sequence[Tuple[str, Sequence[_Plane]]], *, block_tokens: int,
            n_blocks: Sequence[int], optional: bool = False) -> Tuple[int, ...]:
        """Layers (name, planes) and the number of blocks of each; returns their groups."""
        alike: Dict[Tuple[Any, ...], List[int]] = {}
        for i, (_, planes) in enumerate(layers):
            key = tuple(plane.part for plane in planes), n_blocks[i]
            alike.setdefault(key, []).append(i)
        first = len(self.groups)
        for (parts, n), members in alike.items():
            names = tuple(layers[i][0] for i in members)
            group = Group(name + _mark(parts), names, block_tokens, n, parts, optional)
            for at, i in enumerate(members):
                for p, plane in enumerate(layers[i][1]):
                    self.planes[len(self.groups), at, p] = plane
            self.groups.append(group)
        return tuple(range(first, len(self.groups)))

    def whole(self, kind: str, nbytes: int, *, replicated: bool, bound: str = "") -> Part:
        """A part that is not cut: equal on all TP ranks, or of this TP rank alone."""
        if replicated:
            return Part(kind, nbytes)
        if (bound or kind) not in self.tp_bound:
            self.tp_bound.append(bound or kind)
        return Part(kind, nbytes, 1, self.where.tp, self.where.tp_size, "NHD")


    def placed(self, gpu: bool) -> Dict[Tuple[int, int, int], Tuple[Any, ...]]:
        """Where the planes lie, as kvxfer.pd wants to know it."""
        found = places([plane.buffer for plane in self.planes.values()], gpu=gpu)
        out: Dict[Tuple[int, int, int], Tuple[Any, ...]] = {}
        for key, plane in self.planes.items():
            memory, offset = found[plane.buffer.address]
            out[key] = memory, offset + plane.address - plane.buffer.address, plane.stride
        return out


def _mark(parts: Sequence[Part]) -> str:
    """Distinguishes groups of one name whose layers differ; equal on all ranks, and for people."""
    text = ",".join(f"{p.kind}{p.unit_bytes}x{p.total_units}{p.order}" for p in parts)
    return ":" + (text if len(text) <= 40 else f"{zlib.crc32(text.encode()):08x}")


def describe(args: Any, facts: Facts, where: Place, *, latent: bool, aux: bool,
             gpu: bool = False) -> Layout:
    """The layout of a rank's buffers.

    Args:
        args: a KVArgs.
        latent: K/V pages hold latents (MLA, also in hybrid models).
        aux: whether this rank has metadata to send or to take: of a prefill engine only the last
            pipeline stage.
        gpu: whether the engine runs on a GPU.

    Raises Unsupported: buffers in private memory, or state that this version cannot describe.
    """
    maker = _Maker(where)
    if getattr(args, "page_size", 0) <= 0:
        raise errors.Invalid(f"page_size {getattr(args, 'page_size', None)}")
    kv = _kv(maker, args, facts, latent)
    states, slots = [], []
    for i, state in enumerate(args.state_types):
        groups, n_slots = _state(maker, args, i, str(getattr(state, "value", state)), facts, latent)
        states.append(groups)
        slots.append(n_slots)
    metadata = _aux(maker, args) if aux else ()
    return Layout(tuple(maker.groups), maker.placed(gpu), kv, metadata, tuple(states),
                  tuple(maker.tp_bound), tuple(slots))


# ---- K/V


def _kv(maker: _Maker, args: Any, facts: Facts, latent: bool) -> Tuple[int, ...]:
    n = len(args.kv_data_ptrs)
    n_draft = getattr(args, "num_draft_entries", 0)
    names = _kv_names(args, facts, maker.where, n - n_draft, latent)
    cut = None if latent else facts.kv
    groups = _kv_entries(maker, args, range(n - n_draft), names, cut, latent, "kv")
    if n_draft:  # one side may have none
        latent = latent and facts.draft is None
        names = _numbered("d", n_draft, 1 if latent or n_draft % 2 else 2)
        groups += _kv_entries(maker, args, range(n - n_draft, n), names, facts.draft, latent,
                              "draft", optional=True)
    return groups


def _kv_names(args: Any, facts: Facts, where: Place, n: int, latent: bool) -> List[str]:
    """One name per entry: of the layer that it belongs to. K and V of a layer have the same."""
    ids = list(getattr(args, "kv_layer_ids", None) or ())[:n]
    if ids:
        return [str(i) for i in ids]
    if getattr(args, "mla_compression_ratios", None):  # by kind of buffer, not by layer
        return _numbered(_stage(where) + "e", n, 1)
    start = facts.start_layer
    if start is None and where.pp_size > 1:  # e.g. SWA: not all layers of the stage are here
        return _numbered(_stage(where), n, 1 if latent or n % 2 else 2)
    return [str(int(start or 0) + int(name))
            for name in _numbered("", n, 1 if latent or n % 2 else 2)]


def _numbered(prefix: str, n: int, times: int) -> List[str]:
    return [f"{prefix}{i}" for _ in range(times) for i in range(n // times)]


def _stage(where: Place) -> str:
    """Names that are only the same for the same stage of engines with as many stages."""
    return f"p{where.pp}of{where.pp_size}." if where.pp_size > 1 else ""


def _kv_entries(maker: _Maker, args: Any, entries: range, names: Sequence[str],
                cut: Optional[Heads], latent: bool, name: str, *,
                optional: bool = False) -> Tuple[int, ...]:
    """K and V of a layer are entries of one name; the first one is K."""
    layers: Dict[str, List[_Plane]] = {}
    counts: Dict[str, int] = {}
    for i, layer in zip(entries, names):
        item = args.kv_item_lens[i]
        kind = "latent" if latent else "v" if layer in layers else "k"
        part = _page_part(maker, kind, item, args.page_size, cut, latent, name)
        buffer = Buffer(f"kv_data_ptrs[{i}]", args.kv_data_ptrs[i], args.kv_data_lens[i])
        layers.setdefault(layer, []).append(_plane(part, buffer, item))
        counts[layer] = args.kv_data_lens[i] // item
    return maker.add(name, list(layers.items()), block_tokens=args.page_size if cut else 1,
                     n_blocks=list(counts.values()), optional=optional)


def _page_part(maker: _Maker, kind: str, item: int, page: int, cut: Optional[Heads], latent: bool,
               bound: str) -> Part:
    if cut is None:
        return maker.whole(kind, item, replicated=latent, bound=bound)
    unit, rest = divmod(item, page * cut.units)
    if rest:
        raise errors.Unsupported(f"a page of {item} bytes does not hold {cut.units} heads of "
                                 f"{page} tokens: this pool's layout is not known to kvxfer")
    return Part(kind, unit, cut.units, cut.first, cut.total, cut.order)


def _plane(part: Part, buffer: Buffer, stride: int, inside: int = 0) -> _Plane:
    return _Plane(part, buffer.address + inside, stride, buffer)


# ---- states


def _state(maker: _Maker, args: Any, i: int, state: str, facts: Facts,
           latent: bool) -> Tuple[Tuple[int, ...], int]:
    """Groups of component i, and the slots of a row where it is addressed by slot."""
    names = _state_names(args, i, state, maker.where)
    name = f"{state}{args.state_types[:i].count(args.state_types[i]) or ''}"
    layers: List[Tuple[str, Sequence[_Plane]]] = []
    counts: List[int] = []
    tokens, slots = 1, 0
    for t, item in enumerate(args.state_item_lens[i]):
        if item == 0:  # a layer without: nothing to move
            continue
        buffer = Buffer(f"state_data_ptrs[{i}][{t}]", args.state_data_ptrs[i][t],
                        args.state_data_lens[i][t])
        if state == "mamba":
            planes = _mamba(maker, args, i, t, buffer, facts)
        elif state == "dsa_tail":
            slots = _tail_slots(facts, item)
            item //= slots
            planes = [_plane(maker.whole(state, item, replicated=latent), buffer, item)]
        elif state == "swa" and not latent and facts.swa is not None:
            tokens = args.page_size
            part = _page_part(maker, "kv", item, tokens, facts.swa, False, name)
            planes = [_plane(part, buffer, item)]
        else:
            part = maker.whole(state, item, replicated=latent and state in _LATENT_STATES)
            planes = [_plane(part, buffer, item)]
        layers.append((names[t], planes))
        counts.append(buffer.nbytes // item)
    return maker.add(name, layers, block_tokens=tokens, n_blocks=counts), slots


def _state_names(args: Any, i: int, state: str, where: Place) -> List[str]:
    """Layer ids repeat where a layer has several tensors: "5", then "5+1", ..."""
    n = len(args.state_item_lens[i])
    ids = list(args.state_layer_ids[i]) if i < len(args.state_layer_ids) else []
    if not ids:
        return _numbered(_stage(where), n, 1)
    if len(ids) != n:
        raise errors.Unsupported(f"state {state!r}: {len(ids)} layer ids for {n} buffers")
    seen: Dict[Any, int] = {}
    names = []
    for layer in ids:
        names.append(f"{layer}+{seen[layer]}" if layer in seen else str(layer))
        seen[layer] = seen.get(layer, 0) + 1
    return names


def _tail_slots(facts: Facts, item: int) -> int:
    if facts.tail_slots <= 0 or item % facts.tail_slots:
        raise errors.Unsupported(f"DSA's kpool tail: {facts.tail_slots} slots in {item} bytes")
    return facts.tail_slots


def _mamba(maker: _Maker, args: Any, i: int, t: int, buffer: Buffer,
           facts: Facts) -> List[_Plane]:
    """One state tensor: [slots][rows][dims][...], of which each rank has its share of the dims; the
    dims of a convolution are sub-blocks (q, k, v) that are shared out each for itself."""
    item = args.state_item_lens[i][t]
    dims = _of(args.state_dim_per_tensor, i, t, None)
    blocks = _of(args.state_conv_shard_groups, i, t, None)
    unknown = not blocks and any(first <= buffer.address < end for first, end in facts.conv)
    if dims is None or unknown:
        return [_plane(maker.whole("mamba", item, replicated=False), buffer, item)]
    if dims == 0:
        return [_plane(maker.whole("same", item, replicated=True), buffer, item)]
    tp, tp_size = maker.where.tp, maker.where.tp_size
    rows = _of(args.state_slice_outer_counts, i, t, 1) or 1
    blocks = blocks or [dims * tp_size]
    unit, rest = divmod(item, dims * rows)
    if rest or sum(blocks) != dims * tp_size or any(block % tp_size for block in blocks):
        raise errors.Unsupported(f"{buffer.what}: a state of {item} bytes, {rows} rows of {dims} "
                                 f"dims, sub-blocks {blocks}, does not divide by {tp_size} ranks")
    planes, at = [], 0
    for row in range(rows):
        for b, block in enumerate(blocks):
            units = block // tp_size
            kind = f"r{row}b{b}" if rows * len(blocks) > 1 else "dims"
            part = Part(kind, unit, units, tp * units, block, "NHD")
            planes.append(_plane(part, buffer, item, at))
            at += units * unit
    return planes


def _of(lists: Any, i: int, t: int, default: Any) -> Any:
    return lists[i][t] if i < len(lists) and t < len(lists[i]) else default


# ---- metadata


def _aux(maker: _Maker, args: Any) -> Tuple[int, ...]:
    """All buffers are parts of one layer: an index names a row of each of them."""
    planes = []
    for i, item in enumerate(args.aux_item_lens):
        part = Part(f"{i}", item)
        planes.append(_plane(part, Buffer(f"aux_data_ptrs[{i}]", args.aux_data_ptrs[i],
                                          args.aux_data_lens[i], host=True), item))
    rows = min(nbytes // item for nbytes, item in zip(args.aux_data_lens, args.aux_item_lens))
    return maker.add("aux", [("row", planes)], block_tokens=1, n_blocks=[rows])
