"""What other ranks ask of this one, and what is kept of it. Pure. Whoever may send to this rank at
all can send it anything: everything is checked, and bounded by bytes."""

from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from ..errors import ClientLost, KvxferError, ProtocolError
from .geometry import Geometry
from .messages import CLAIM, Message, no_ids
from .plan import PartTake, Span, Take
from .rendezvous import ADDRESS_MAX, ID_MAX, NAME_MAX

__all__ = ["ASKS_MAX", "ASKS_MAX_EACH", "Ask", "Ledger", "Tokens", "Want", "read_ask",
           "short"]

#: Bytes of the asks of one rank, and of all, that wait or are being served.
ASKS_MAX_EACH = 128 << 20
ASKS_MAX = 512 << 20
_TOKENS = 8192
# What an ask takes in memory, at most: the tuples that its fields become are up to 16 times as long
# as the text, and each list of ids has objects of its own.
_COST, _COST_OF_HEAD, _COST_OF_WANT = 2048, 16, 1024


class Want(NamedTuple):
    """Blocks of one group that a destination asks for."""

    src_group: int
    dst_group: int
    span: Span  #: READ: ids of the destination are not told, () here
    n_blocks: int
    takes: Tuple[Take, ...]


class Ask(NamedTuple):
    """What a destination rank has asked for."""

    role: str  #: "offer" or "hold": what it is about
    id: str
    name: str
    engine: str
    address: str
    n_ranks: int  #: of its engine
    token: int  #: 0: nothing is wanted
    life: int  #: of its memory
    until: float
    tokens: Optional[int]
    n_pairs: int  #: transfers that it makes (READ)
    info: bytes
    wants: Tuple[Want, ...]
    cost: int  #: bytes that it takes here, at most

    @property
    def who(self) -> Tuple[str, str]:
        """The rank that has asked."""
        return self.name, self.address

    def gone(self) -> KvxferError:
        """It had published its memory before it asked, and now nobody has that name."""
        return ClientLost(f"{self.name} asked for {self.id!r}, and has gone before it was found")

    def outlived(self, geometry: Optional[Geometry]) -> bool:
        """That note is of an earlier life of the rank: its end has not been told here yet."""
        return geometry is not None and geometry.life < self.life


def read_ask(message: Message, geometry: Geometry, now: float) -> Ask:
    """Checks everything. Raises ProtocolError."""
    f = message.fields
    try:
        place = [int(n) for n in f["place"]]
        name, n_ranks = short(f, "from", NAME_MAX), place[1] * place[3]
        wants = []
        for i, (src_group, dst_group, first, n, takes) in enumerate(f.get("wants", ())):
            ids = message.ids[i] if message.kind != CLAIM else no_ids()
            if not (0 <= src_group < len(geometry.groups)
                    and first >= 0 and n > 0 and dst_group >= 0):
                raise ValueError(f"blocks {first}..+{n} of group {src_group}")
            if message.kind != CLAIM and len(ids) != n:
                raise ValueError("number of block ids")
            wants.append(Want(src_group, dst_group, Span(first, ids), n,
                              tuple(_read_take(src_group, dst_group, take) for take in takes)))
        tokens = f.get("tokens")
        left = float(f["left"])
        if not -1e8 < left < 1e8:  # NaN, too
            raise ValueError("time left")
        if not 0 < n_ranks <= 65536 or not 0 <= int(f["token"]) < 1 << 48:
            raise ValueError("place or token")
        id_, address = short(f, "id", ID_MAX), short(f, "at", ADDRESS_MAX)
        return Ask("hold" if message.kind == CLAIM else "offer", id_, name,
                   name.rsplit("/", 2)[0], address, n_ranks, int(f["token"]),
                   int(f["life"]), now + left, None if tokens is None else int(tokens),
                   int(f.get("pairs", 0)), str(f.get("info", "")).encode("latin-1", "replace"),
                   tuple(wants), _COST + _COST_OF_HEAD * message.n_head
                   + sum(_COST_OF_WANT + 4 * len(want.span.ids) for want in wants))
    except (KeyError, ValueError, TypeError, IndexError) as err:
        raise ProtocolError(f"a request for blocks that cannot be read ({err!r})") from None


def _read_take(src_group: int, dst_group: int, fields: Any) -> Take:
    layers, parts = fields
    return Take(src_group, dst_group, tuple((int(a), int(b), int(n)) for a, b, n in layers),
                tuple(PartTake(*(int(x) for x in part)) for part in parts))


def short(fields: Mapping[str, Any], key: str, most: int) -> str:
    """A text of the fields. Raises KeyError, ValueError."""
    text = str(fields[key])
    if len(text) > most:
        raise ValueError(f"{key} of {len(text)} characters")
    return text


class Ledger:
    """Bytes of asks that are kept, by who has asked."""

    def __init__(self) -> None:
        self.total = 0
        self._each: Dict[Tuple[str, str], int] = {}

    def of(self, who: Tuple[str, str]) -> int:
        return self._each.get(who, 0)

    def add(self, ask: Ask) -> None:
        self.total += ask.cost
        self._each[ask.who] = self.of(ask.who) + ask.cost

    def remove(self, ask: Ask) -> None:
        self.total -= ask.cost
        left = self._each[ask.who] - ask.cost
        if left:
            self._each[ask.who] = left
        else:
            del self._each[ask.who]

    def worst(self) -> Tuple[str, str]:
        """Who has the most."""
        return max(self._each, key=self.of)


class Tokens:
    """The last tokens that were asked with or called off, at least so many thousand. Messages of
    one rank that take two ways may overtake each other: who has been told that nothing will move
    must not be served by a request that comes after that."""

    def __init__(self) -> None:
        self._new: Dict[int, Optional[KvxferError]] = {}
        self._old: Dict[int, Optional[KvxferError]] = {}

    def __contains__(self, token: int) -> bool:
        return token in self._new or token in self._old

    def error(self, token: int) -> Optional[KvxferError]:
        """Why it was called off before it came; None: it has come."""
        return self._new[token] if token in self._new else self._old[token]

    def add(self, token: int, error: Optional[KvxferError]) -> None:
        if len(self._new) >= _TOKENS:
            self._old, self._new = self._new, {}
        self._new[token] = error
