"""Which bytes of one rank belong to which bytes of another. Pure functions of geometries.

The destination decides: :func:`assign` says what each rank of the source engine gives to one
destination rank. From that, :func:`runs` makes what the daemon is told: ranges of planes with one
slice each; and :func:`pairs` the block ids.
"""

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from ..errors import LayoutMismatch
from ..transfer import Slice
from .geometry import Geometry, Group, Part, block_bytes

__all__ = ["PartTake", "Run", "Side", "Span", "Take", "assign", "atoms", "check_take", "pairs",
           "regions_of", "runs"]


class PartTake(NamedTuple):
    """Units [unit, unit + n_units) of the model, of one part."""

    src_part: int
    dst_part: int
    unit: int
    n_units: int


class Take(NamedTuple):
    """What one source rank gives of one group."""

    src_group: int
    dst_group: int
    #: (layer there, layer here, how many from there on), as indexes into the groups' layers.
    layers: Tuple[Tuple[int, int, int], ...]
    parts: Tuple[PartTake, ...]

    @property
    def n_layers(self) -> int:
        return sum(n for _, _, n in self.layers)


class Side(NamedTuple):
    """One side of a run: region, first plane in it, and which share of a block in atoms (see
    :func:`atoms`) the run is about."""

    region: int
    plane: int
    shift: int


class Run(NamedTuple):
    """``n_planes`` planes from ``local`` on against those from ``remote`` on, with one slice."""

    local: Side
    remote: Side
    n_planes: int
    slice: Optional[Slice]  #: None: whole blocks


# ---- who gives what


def assign(dst: Geometry, srcs: Sequence[Geometry], dst_group: int) -> List[Tuple[Take, ...]]:
    """What each of ``srcs`` (all ranks of one engine) gives of a group to the rank ``dst``.
    Together all that ``dst`` has of the group, once. Groups, layers and parts are matched by their
    names. Of ranks that hold the same, the one at ``dst.tp`` modulo their number gives. What is
    nowhere is an error, or, where the group of ``dst`` is optional, left out.

    Raises LayoutMismatch, which names the group, both values and what to do.
    """
    group = dst.groups[dst_group]
    found = [_find_group(src, group.name) for src in srcs]
    places = [{} if g is None else {layer: i for i, layer in enumerate(srcs[at].groups[g].layers)}
              for at, g in enumerate(found)]
    alike: Dict[Tuple[int, ...], List[int]] = {}
    for layer, name in enumerate(group.layers):
        holders = tuple(i for i, place in enumerate(places) if name in place)
        if holders:
            alike.setdefault(holders, []).append(layer)
        elif not group.optional:
            raise LayoutMismatch(_nowhere(group, layer, srcs))
    takes: List[Tuple[Take, ...]] = [()] * len(srcs)
    for holders, layers in alike.items():
        ranks = [(i, _is(found[i])) for i in holders]
        for i, parts in _assign_parts(dst, dst_group, srcs, ranks):
            rows = _rows([(places[i][group.layers[layer]], layer) for layer in layers])
            take = Take(_is(found[i]), dst_group, rows, parts)
            check_take(srcs[i], dst, take)
            takes[i] += (take,)
    return takes


def _nowhere(group: Group, layer: int, srcs: Sequence[Geometry]) -> str:
    names = sorted({g.name for src in srcs for g in src.groups})
    if group.name not in names:
        return (f"group {group.name!r} is not on the other side, which has {names}: both engines "
                "must run the same model, with the same kinds of KV cache")
    return (f"group {group.name!r}: layer {group.layers[layer]!r} is on none of the {len(srcs)} "
            "ranks of the other side: both engines must run the same model, and pp_size and "
            "tp_size of the other side must be right")


def _rows(pairs_: Sequence[Tuple[int, int]]) -> Tuple[Tuple[int, int, int], ...]:
    rows: List[Tuple[int, int, int]] = []
    for a, b in pairs_:
        if rows and (a, b) == (rows[-1][0] + rows[-1][2], rows[-1][1] + rows[-1][2]):
            rows[-1] = rows[-1][:2] + (rows[-1][2] + 1,)
        else:
            rows.append((a, b, 1))
    return tuple(rows)


def _assign_parts(dst: Geometry, dst_group: int, srcs: Sequence[Geometry],
                  ranks: Sequence[Tuple[int, int]]) -> Iterator[Tuple[int, Tuple[PartTake, ...]]]:
    """Of the ranks (index, group index) that hold some layers: those that give, and which units."""
    given: Dict[int, List[PartTake]] = {}
    group = dst.groups[dst_group]
    for dst_part, part in enumerate(group.parts):
        holders: Dict[Tuple[int, int], List[Tuple[int, int]]] = {}
        for i, g in ranks:
            for src_part, other in enumerate(srcs[i].groups[g].parts):
                if other.kind == part.kind:
                    start, n, _ = _units(other)
                    holders.setdefault((start, start + n), []).append((i, src_part))
        if not holders:
            kinds = sorted({p.kind for i, g in ranks for p in srcs[i].groups[g].parts})
            raise LayoutMismatch(
                f"group {group.name!r}: {part.kind!r} here, but {kinds} on the other side: both "
                "engines must use the same kind of KV cache (attention backend, MLA or not)")
        first, n, total = _units(part)
        for unit, stop, held in _cover(first, first + n, list(holders)):
            if held is None:
                raise LayoutMismatch(
                    f"group {group.name!r}, {part.kind!r}: unit {unit} of {total} is on no rank "
                    "of the other side: both engines must run the same model, the right tp_size")
            i, src_part = holders[held][dst.tp % len(holders[held])]
            given.setdefault(i, []).append(PartTake(src_part, dst_part, unit, stop - unit))
    for i in sorted(given):
        yield i, tuple(given[i])


def _cover(start: int, end: int, ranges: List[Tuple[int, int]]
           ) -> Iterator[Tuple[int, int, Optional[Tuple[int, int]]]]:
    """[start, end) in pieces, each with the range that contains it and reaches furthest; None: a
    hole (the last that is told)."""
    at = start
    while at < end:
        best = max((r for r in ranges if r[0] <= at < r[1]),
                   key=lambda r: (r[1], r[0]), default=None)
        if best is None:
            yield at, at, None
            return
        stop = min(best[1], end)
        yield at, stop, best
        at = stop


def _units(part: Part) -> Tuple[int, int, int]:
    """First unit, units, total: of an order that cannot be split always 0, 1, 1."""
    return (part.first_unit, part.units, part.total_units) if part.order else (0, 1, 1)


def _find_group(geometry: Geometry, name: str) -> Optional[int]:
    for i, group in enumerate(geometry.groups):
        if group.name == name and group.layers:
            return i
    return None


def _is(value: Optional[int]) -> int:
    assert value is not None
    return value


# ---- whether two sides fit


def check_take(src: Geometry, dst: Geometry, take: Take) -> None:
    """Raises LayoutMismatch unless the take is there on both sides and its blocks can be moved."""
    if not (0 <= take.src_group < len(src.groups) and 0 <= take.dst_group < len(dst.groups)):
        raise LayoutMismatch(f"groups {take.src_group} and {take.dst_group}: no such group")
    a, b = src.groups[take.src_group], dst.groups[take.dst_group]
    if a.name != b.name:
        raise LayoutMismatch(f"group {b.name!r} was matched with {a.name!r}")
    for at, to, n in take.layers:
        if n <= 0 or not (0 <= at <= len(a.layers) - n and 0 <= to <= len(b.layers) - n):
            raise LayoutMismatch(
                f"group {a.name!r}: layers {at}..+{n} and {to}..+{n}: not all there")
        for name_a, name_b in zip(a.layers[at:at + n], b.layers[to:to + n]):
            if name_a != name_b:
                raise LayoutMismatch(
                    f"group {a.name!r}: layer {name_b!r} was matched with {name_a!r}")
    _check_tokens(a, b)
    for part in take.parts:
        _check_part(a, b, part)


def _check_tokens(a: Group, b: Group) -> None:
    low, high = sorted((a.block_tokens, b.block_tokens))
    if low != high and (low == 0 or high % low != 0):
        raise LayoutMismatch(
            f"group {a.name!r}: blocks of {a.block_tokens} tokens at the source and of "
            f"{b.block_tokens} at the destination: one must be a multiple of the other (set the "
            "block size of the engines)")


def _check_part(a: Group, b: Group, take: PartTake) -> None:
    if not (0 <= take.src_part < len(a.parts) and 0 <= take.dst_part < len(b.parts)):
        raise LayoutMismatch(f"group {a.name!r}: parts {take.src_part}, {take.dst_part}: not there")
    p, q = a.parts[take.src_part], b.parts[take.dst_part]
    where = f"group {a.name!r}, {q.kind!r}"
    alike = p.units == q.units == 1
    for what, x, y, ok in (
            ("kind", p.kind, q.kind, p.kind == q.kind),
            ("order", p.order, q.order, p.order == q.order or (alike and p.order and q.order)),
            ("copies", p.copies, q.copies, p.copies == q.copies),
            ("total units", _units(p)[2], _units(q)[2], _units(p)[2] == _units(q)[2]),
            ("bytes per token and unit", _token_bytes(a, p), _token_bytes(b, q),
             _token_bytes(a, p) == _token_bytes(b, q))):
        if not ok:
            raise LayoutMismatch(f"{where}: {what} {x} at the source, {y} at the destination: set "
                                 "both engines to the same KV cache type and layout")
    for side, part in (("source", p), ("destination", q)):
        first, n, _ = _units(part)
        if not first <= take.unit < take.unit + take.n_units <= first + n:
            raise LayoutMismatch(f"{where}: units {take.unit}..+{take.n_units} are not all at the "
                                 f"{side}, which has {n} from {first} on")


def _token_bytes(group: Group, part: Part) -> Tuple[int, int]:
    """Bytes of one unit, and of how many tokens: comparable."""
    if part.order or group.block_tokens == 0:
        return part.unit_bytes, 1
    return part.unit_bytes // group.block_tokens, part.unit_bytes % group.block_tokens


# ---- ranges of planes


def runs(local: Geometry, remote: Geometry, take: Take, only: Optional[range],
         local_is_source: bool) -> List[Run]:
    """The runs of a take, of the source's layers ``only`` (indexes into its group; None: all).
    Neighbours with the same slice are one."""
    g, h = _sides(take.src_group, take.dst_group, local_is_source)
    a, b = local.groups[g], remote.groups[h]
    layers = [_sides(at + i, to + i, local_is_source) for at, to, n in take.layers for i in range(n)
              if only is None or at + i in only]
    found: Dict[Tuple[Optional[Slice], int, int], List[Tuple[Side, Side]]] = {}
    for part in take.parts:
        i, j = _sides(part.src_part, part.dst_part, local_is_source)
        for piece, s, t in _slices(a, a.parts[i], b, b.parts[j], part):
            found.setdefault((piece, s, t), []).extend(
                (Side(*local.planes[g, here, i], s), Side(*remote.planes[h, there, j], t))
                for here, there in layers)
    out: List[Run] = []
    for (piece, _, _), planes in found.items():
        planes.sort()
        out += _merge(planes, piece)
    return out


def _merge(planes: List[Tuple[Side, Side]], piece: Optional[Slice]) -> Iterator[Run]:
    start = 0
    for i in range(1, len(planes) + 1):
        if i < len(planes):
            (a, b), (c, d) = planes[i - 1], planes[i]
            if (c == a._replace(plane=a.plane + 1)) and (d == b._replace(plane=b.plane + 1)):
                continue
        yield Run(planes[start][0], planes[start][1], i - start, piece)
        start = i


def _sides(src: int, dst: int, local_is_source: bool) -> Tuple[int, int]:
    return (src, dst) if local_is_source else (dst, src)


def atoms(group: Group, other: Group) -> int:
    """How many of the smaller of two groups' blocks are one block of ``group``."""
    low = min(group.block_tokens, other.block_tokens)
    return group.block_tokens // low if low else 1


def wanted_atoms(first: int, n: int, src: Group, dst: Group, tokens: Optional[int]
                 ) -> Tuple[int, int]:
    """[start, end) in atoms of ``n`` destination blocks from ``first`` on, of which only those that
    hold the first ``tokens`` tokens of the request are wanted."""
    per_block = atoms(dst, src)
    start, end = first * per_block, (first + n) * per_block
    if tokens is not None and dst.block_tokens:
        end = min(end, -(-tokens // min(src.block_tokens, dst.block_tokens)))
    return start, max(start, end)


def _slices(a: Group, p: Part, b: Group, q: Part, take: PartTake
            ) -> Iterator[Tuple[Optional[Slice], int, int]]:
    """(slice, local shift, remote shift) for each share of the larger block, and each copy."""
    n_a, n_b = atoms(a, b), atoms(b, a)
    size_a, size_b = block_bytes(a, p) // p.copies, block_bytes(b, q) // q.copies
    for share in range(max(n_a, n_b)):
        s, t = share % n_a, share % n_b
        piece = _piece(a, p, s, b, q, t, take)
        whole = piece.bytes * piece.count == size_a == size_b
        if whole:
            yield None, s, t
            continue
        for copy in range(p.copies):
            yield piece._replace(local_offset=piece.local_offset + copy * size_a,
                                 remote_offset=piece.remote_offset + copy * size_b), s, t


def _piece(a: Group, p: Part, s: int, b: Group, q: Part, t: int, take: PartTake) -> Slice:
    """Units of ``take`` of the s-th share of a block here and the t-th there, of the first copy."""
    tokens_a, tokens_b = max(a.block_tokens, 1), max(b.block_tokens, 1)
    tokens = min(tokens_a, tokens_b)
    if not p.order:
        share = block_bytes(a, p) // p.copies // atoms(a, b)
        return Slice(s * share, t * share, share)
    unit, n = p.unit_bytes, take.n_units
    skip_a, skip_b = take.unit - p.first_unit, take.unit - q.first_unit
    if p.order == "NHD" and (p.units > 1 or q.units > 1):
        piece = Slice((s * tokens * p.units + skip_a) * unit,
                      (t * tokens * q.units + skip_b) * unit,
                      n * unit, tokens, p.units * unit, q.units * unit)
    else:
        piece = Slice((skip_a * tokens_a + s * tokens) * unit,
                      (skip_b * tokens_b + t * tokens) * unit,
                      tokens * unit, n, tokens_a * unit, tokens_b * unit)
    if piece.count == 1 or piece.bytes == piece.local_stride == piece.remote_stride:
        return Slice(piece.local_offset, piece.remote_offset, piece.bytes * piece.count)
    return piece


def regions_of(local: Geometry, remote: Geometry, takes: Sequence[Take],
               local_is_source: bool) -> List[Tuple[int, int]]:
    """The pairs of regions (local, remote) between which the takes move something, sorted. One
    transfer each."""
    found = set()
    for take in takes:
        for run in runs(local, remote, take, None, local_is_source):
            found.add((run.local.region, run.remote.region))
    return sorted(found)


# ---- block ids


class Span(NamedTuple):
    """Logical blocks [first, first + len(ids)) of a request and the blocks they are in."""

    first: int
    ids: "memoryview"  #: of uint32


def pairs(run: Run, local: Span, n_local: int, remote: Span, n_remote: int, start: int, end: int
          ) -> Optional[Tuple["memoryview", "memoryview"]]:
    """Block ids of both sides for the atoms [start, end) that a run is about; None: none.

    Args:
        n_local, n_remote: atoms of a block (:func:`atoms`), one of them 1.
    """
    if n_local == n_remote == 1:
        first, last = max(start, local.first, remote.first), min(
            end, local.first + len(local.ids), remote.first + len(remote.ids))
        if first >= last:
            return None
        return (local.ids[first - local.first:last - local.first],
                remote.ids[first - remote.first:last - remote.first])
    start = max(start, local.first * n_local, remote.first * n_remote)
    end = min(end, (local.first + len(local.ids)) * n_local,
              (remote.first + len(remote.ids)) * n_remote)
    n = max(n_local, n_remote)
    share = run.local.shift if n_local > 1 else run.remote.shift
    start += (share - start) % n
    if start >= end:
        return None
    count = (end - 1 - start) // n + 1
    return (_every(local, start // n_local, n // n_local, count),
            _every(remote, start // n_remote, n // n_remote, count))


def _every(span: Span, at: int, step: int, count: int) -> "memoryview":
    at -= span.first
    ids = span.ids[at:at + (count - 1) * step + 1]
    return ids if step == 1 else memoryview(bytes(ids[::step].tobytes())).cast("I")
