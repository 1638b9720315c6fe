"""What a rank's KV cache is made of: groups of layers, and in every block of a layer parts of K, V
or state. Pure values; no daemon, no torch.

The two sides of a transfer describe their own memory in these words, and :mod:`kvxfer.pd.plan`
finds out which bytes of one belong to which bytes of the other.
"""

import json
import secrets
import time
import zlib
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import Invalid, LayoutMismatch, ProtocolError, VersionMismatch

__all__ = ["Endpoint", "Geometry", "Group", "Part", "rank_name"]

NOTE_VERSION = 1
NOTE_MAX = 4096  # bytes: a region's note
NOTE_UNPACKED_MAX = 1 << 20
ORDERS = ("NHD", "HND", "")


class Part(NamedTuple):
    """One plane of every layer of a group: what one block of one layer holds of one kind.

    A block is ``copies`` pieces behind each other, each of them [tokens][units] ("NHD") or
    [units][tokens] ("HND") of ``unit_bytes``; with order "" it is ``unit_bytes`` that cannot be
    split by heads. Bytes of one block: copies * tokens * units * unit_bytes, and unit_bytes with
    order "".
    """

    #: "k", "v", "kv" (both in one block), "latent", "state...": free words, equal on both sides.
    kind: str
    #: Bytes of one unit (KV head) of one token. Order "": of the whole block. In groups with
    #: block_tokens 0: of one unit of the state.
    unit_bytes: int
    #: Units (KV heads) in a block here.
    units: int = 1
    #: The first of them among all units of the model.
    first_unit: int = 0
    #: Units of the model. Ranks that hold the same units (replicated KV heads, MLA) name the same
    #: range.
    total_units: int = 1
    #: "NHD": token-major; "HND": head-major; "": not to be split.
    order: str = ""
    #: Pieces behind each other in a block: 2 where K and V of a block lie beside each other and are
    #: one plane.
    copies: int = 1


class Group(NamedTuple):
    """One KV-cache group: layers that share block ids."""

    #: Equal on both sides: groups are matched by it.
    name: str
    #: Names of the layers that this rank has, in the model's order. Matched by name.
    layers: Tuple[str, ...]
    #: Tokens of one block as the engine counts them. 0: a state, one block for the whole request.
    block_tokens: int
    #: Block ids are 0..n_blocks-1.
    n_blocks: int
    #: The same for every layer. Several of one kind where its units lie in planes of their own.
    parts: Tuple[Part, ...]
    #: As destination: layers that the other side has not are left out, instead of being an error.
    optional: bool = False


class Endpoint(NamedTuple):
    """An engine instance: all ranks of one of its data-parallel ranks."""

    #: "host:port" of its node's daemon for peers (host alone: the default port); "": this node.
    address: str
    #: The ``engine`` that its ranks were made with.
    engine: str
    dp: int = 0
    #: None: as its rank pp0/tp0 says.
    tp_size: Optional[int] = None
    pp_size: Optional[int] = None
    #: (pp, tp) -> address, for ranks that are on other nodes than ``address``.
    addresses: Optional[Mapping[Tuple[int, int], str]] = None

    def address_of(self, pp: int, tp: int) -> str:
        return (self.addresses or {}).get((pp, tp), self.address)


#: (group index, layer index in the group, part index)
PlaneKey = Tuple[int, int, int]


class Geometry:
    """All that the other side knows about a rank: the note of its region. Not changed once made.

    Attributes:
        groups: :class:`Group`, in the rank's order.
        tp, tp_size, pp, pp_size: the rank's place.
        regions: for each plane, in the order of ``plane_keys()``, the region it lies in.
        check: must be equal on both sides.
        info: free words for the other side.
        life: a number of its own for each publication, greater than those of earlier ones (as far
            as the node's clock goes forward): whoever was asked by an earlier one of this name must
            not write to this one.
    """

    def __init__(self, groups: Sequence[Group], *, tp: int = 0, tp_size: int = 1, pp: int = 0,
                 pp_size: int = 1, regions: Sequence[int] = (),
                 check: Optional[Mapping[str, str]] = None,
                 info: Optional[Mapping[str, Any]] = None, life: int = 0) -> None:
        self.life = life
        self.groups = tuple(groups)
        self.tp, self.tp_size, self.pp, self.pp_size = tp, tp_size, pp, pp_size
        keys = plane_keys(self.groups)
        self.regions = tuple(regions) or (0,) * len(keys)
        self.check = dict(check or {})
        self.info = dict(info or {})
        self.planes: Dict[PlaneKey, Tuple[int, int]] = {}
        next_plane = [0] * self.n_regions
        for key, region in zip(keys, self.regions):
            self.planes[key] = (region, next_plane[region])
            next_plane[region] += 1

    @property
    def n_regions(self) -> int:
        return max(self.regions, default=0) + 1

    def reborn(self) -> "Geometry":
        """The same, to be published anew."""
        return Geometry(self.groups, tp=self.tp, tp_size=self.tp_size, pp=self.pp,
                        pp_size=self.pp_size, regions=self.regions, check=self.check,
                        info=self.info, life=_new_life())

    def check_words(self, other: "Geometry") -> None:
        """Raises LayoutMismatch where a word of ``check`` is not the same on the other side."""
        for key in sorted(set(self.check) | set(other.check)):
            here, there = self.check.get(key), other.check.get(key)
            if here != there:
                raise LayoutMismatch(f"{key}: {here!r} here, {there!r} on the other side: start "
                                     "both engines with the same")


def rank_name(engine: str, dp: int = 0, pp: int = 0, tp: int = 0) -> str:
    """The name under which a rank publishes its memory."""
    return f"{engine}/dp{dp}/pp{pp}/tp{tp}"


def plane_keys(groups: Sequence[Group]) -> List[PlaneKey]:
    """Every (group, layer, part) in the order of the planes: parts that are cut in the same way lie
    beside each other layer by layer, so that one range of planes covers all that one call moves."""
    keys = []
    for g, group in enumerate(groups):
        alike: Dict[Tuple[Any, ...], List[int]] = {}
        for p, part in enumerate(group.parts):
            alike.setdefault(part[1:], []).append(p)
        for parts in alike.values():
            keys += [(g, layer, p) for layer in range(len(group.layers)) for p in parts]
    return keys


def block_bytes(group: Group, part: Part) -> int:
    """Bytes of one block of one plane."""
    if not part.order:
        return part.unit_bytes * part.copies
    return part.copies * max(group.block_tokens, 1) * part.units * part.unit_bytes


def check_groups(groups: Sequence[Group]) -> None:
    """Raises Invalid for groups that make no sense in themselves."""
    names = [group.name for group in groups]
    if not groups or len(set(names)) != len(names):
        raise Invalid(f"groups {names}: at least one, with different names")
    for group in groups:
        where = f"group {group.name!r}"
        if group.block_tokens < 0 or group.n_blocks <= 0 or not group.parts:
            raise Invalid(
                f"{where}: block_tokens must be >= 0, n_blocks > 0, and there must be parts")
        if len(set(group.layers)) != len(group.layers):
            raise Invalid(f"{where}: a layer is named twice")
        held: Dict[str, int] = {}
        for part in sorted(group.parts, key=lambda part: part.first_unit):
            _check_part(part, f"{where}, {part.kind!r}")
            if part.first_unit < held.get(part.kind, 0):
                raise Invalid(f"{where}: unit {part.first_unit} of {part.kind!r} is in two parts")
            held[part.kind] = part.first_unit + part.units


def _check_part(part: Part, where: str) -> None:
    if part.order not in ORDERS:
        raise Invalid(f"{where}: order {part.order!r}: one of {ORDERS}")
    if part.unit_bytes <= 0 or part.copies <= 0:
        raise Invalid(f"{where}: unit_bytes and copies must be > 0")
    if not 0 <= part.first_unit < part.first_unit + part.units <= part.total_units:
        raise Invalid(f"{where}: units {part.first_unit}..+{part.units} of {part.total_units}")


# ---- the note


def pack_note(geometry: Geometry) -> bytes:
    """At most NOTE_MAX bytes. Raises Invalid where they do not suffice."""
    g = geometry
    body = {"v": NOTE_VERSION, "place": [g.tp, g.tp_size, g.pp, g.pp_size], "groups": g.groups,
            "regions": _pack_regions(g.regions), "check": g.check, "info": g.info, "life": g.life}
    try:
        note = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 9)
    except (TypeError, ValueError) as err:
        raise Invalid(f"check and info must be JSON: {err}") from None
    if len(note) > NOTE_MAX:
        raise Invalid(f"names of layers, check and info need {len(note)} bytes, at most "
                      f"{NOTE_MAX}: make info shorter")
    return note


def unpack_note(note: bytes) -> Geometry:
    """The opposite. Raises ProtocolError, VersionMismatch."""
    unzip = zlib.decompressobj()
    try:
        body = json.loads(unzip.decompress(note, NOTE_UNPACKED_MAX))
        if body["v"] != NOTE_VERSION:
            raise VersionMismatch(f"the other rank speaks version {body['v']}, this one "
                                  f"{NOTE_VERSION}: install the same kvxfer on both sides")
        tp, tp_size, pp, pp_size = body["place"]
        groups = [_group(group) for group in body["groups"]]
        check_groups(groups)
        if not (0 <= tp < tp_size and 0 <= pp < pp_size and tp_size * pp_size <= 65536):
            raise ValueError("place")
        if any(group.block_tokens > 65536 for group in groups):
            raise ValueError("block_tokens")
        regions = [region for region, n in body["regions"] for _ in range(n)]
        if len(regions) != len(plane_keys(groups)) or not all(0 <= r < 4096 for r in regions):
            raise ValueError("regions of planes")
        return Geometry(groups, tp=tp, tp_size=tp_size, pp=pp, pp_size=pp_size, regions=regions,
                        check=body["check"], info=body["info"], life=int(body["life"]))
    except (ValueError, TypeError, KeyError, zlib.error, Invalid) as err:
        raise ProtocolError(f"the other rank's note cannot be read ({err}): it was not published "
                            "by kvxfer.pd") from None


def _new_life() -> int:
    """Microseconds, and 11 bits that two publications within one do not have in common."""
    return time.time_ns() // 1000 << 11 | secrets.randbits(11)


def _group(fields: Sequence[Any]) -> Group:
    name, layers, block_tokens, n_blocks, parts, optional = fields
    return Group(str(name), tuple(str(layer) for layer in layers), int(block_tokens), int(n_blocks),
                 tuple(Part(*part) for part in parts), bool(optional))


def _pack_regions(regions: Sequence[int]) -> List[List[int]]:
    """As (region, how many planes)."""
    out: List[List[int]] = []
    for region in regions:
        if out and out[-1][0] == region:
            out[-1][1] += 1
        else:
            out.append([region, 1])
    return out
