"""The prefill side: blocks that are offered (WRITE) or held (READ), and the ranks that ask for
them."""

from collections import OrderedDict
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

from ..errors import Deadline, Exists, KvxferError, ProtocolError, Quota
from ..events import Event
from .geometry import Geometry
from .messages import CANCEL, CLAIM, FAILED, Message, no_ids
from .peers import Peer
from .plan import PartTake, Span, Take
from .rendezvous import Hub, Rendezvous, error_fields, error_of
from .stream import Stream

__all__ = ["Ask", "Dest", "Source", "Sources", "Want"]

_REMEMBERED = 4096
_WAITING_MAX = 65536

#: States of a destination.
ASKED = "asked"  #: it is being connected to
OPEN = "open"  #: offer: what is added goes there; hold: it has the block ids and reads
ENDING = "ending"  #: it has been told to stop, or its stream is being cancelled
ENDED = "ended"


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


def read_ask(message: Message, geometry: Geometry, now: float) -> Ask:
    """Checks everything. Raises ProtocolError."""
    f = message.fields
    try:
        place = [int(n) for n in f["place"]]
        name, n_ranks = str(f["from"]), place[1] * place[3]
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
        return Ask("hold" if message.kind == CLAIM else "offer", str(f["id"]), name,
                   name.rsplit("/", 2)[0], str(f["at"]), n_ranks, int(f["token"]),
                   int(f["life"]), now + left, None if tokens is None else int(tokens),
                   int(f.get("pairs", 0)), str(f.get("info", "")).encode("latin-1", "replace"),
                   tuple(wants))
    except (KeyError, ValueError, TypeError, IndexError) as err:
        raise ProtocolError(f"a request for blocks that cannot be read ({err!r})") from None


def _read_take(src_group: int, dst_group: int, fields: Any) -> Take:
    layers, parts = fields
    return Take(src_group, dst_group, tuple((int(a), int(b), int(n)) for a, b, n in layers),
                tuple(PartTake(*(int(x) for x in part)) for part in parts))


class Dest:
    """One destination rank of an offer or a hold. Watches its peer."""

    def __init__(self, source: "Source", ask: Ask, peer: Peer) -> None:
        self.source, self.ask, self.peer = source, ask, peer
        self.state = ASKED
        self.error: Optional[KvxferError] = None
        self.arrived = 0  # READ
        self.gone = False  # nothing can be told to it any more
        self.data: Any = None  # the offer's

    def on_peer_up(self, peer: Peer) -> None:
        self.source._dest_up(self)

    def on_peer_lost(self, peer: Peer, error: KvxferError, fenced: bool) -> None:
        if self.state != ENDED:
            self.gone = fenced
            self.error = self.error or error
            self.source._dest_lost(self, error, fenced)

    def on_message(self, message: Message) -> None:
        """A token of READ is the destination's own: nothing else comes here."""

    def on_arrival(self, event: Event) -> None:
        self.source._dest_arrival(self, event)

    def on_stream_end(self, stream: Stream) -> None:
        self.source._dest_sent(self, stream)


class Source(Rendezvous):
    """What an offer and a hold have in common: destinations, all of which have to be served."""

    def __init__(self, hub: Hub, sources: "Sources", id: str, deadline: float, label: str) -> None:
        super().__init__(hub, id, deadline, label)
        self._sources = sources
        self._dests: Dict[str, Dest] = {}
        self._n_ranks = 0  # 0: not known yet
        #: Whether every rank of a decode engine has asked (those that need nothing included).
        self.claimed = False
        #: ``info`` of those that have asked, in their order.
        self.infos: Tuple[bytes, ...] = ()

    # ---- asked

    def asked(self, ask: Ask) -> bool:
        """False: not for this one, but for a later one of the same id."""
        if self._error is not None:
            self._sources.refuse(ask, self._error)
            return True
        if ask.name in self._dests:
            return False
        first = next(iter(self._dests.values()), None)
        if first is not None and (first.ask.engine, first.ask.n_ranks) != (ask.engine, ask.n_ranks):
            self._sources.refuse(ask, Exists(
                f"{self.id!r} goes to {first.ask.engine} already, which has "
                f"{first.ask.n_ranks} ranks"))
            return True
        dest = self._dests[ask.name] = Dest(self, ask, self._hub.peer(ask.name, ask.address))
        self._n_ranks = ask.n_ranks
        self.claimed = len(self._dests) == self._n_ranks
        self.infos += (ask.info,)
        if not ask.token:
            dest.state = ENDED
            self._check_end()
            return True
        dest.peer.watchers.add(dest)
        if dest.peer.up:
            self._dest_up(dest)
        return True

    def unwanted(self, name: str, token: int, error: KvxferError) -> bool:
        """A destination does not want it any more. False: this one has not been asked by it."""
        dest = self._dests.get(name)
        if not token and (dest is None or not dest.ask.token):
            self._fail(error)
            return True
        if dest is None or (token and dest.ask.token != token):
            return False
        if dest.state != ENDED:
            dest.error = dest.error or error
            self._dest_unwanted(dest, error)
        return True

    # ---- of the kinds

    def _dest_up(self, dest: Dest) -> None:
        raise NotImplementedError

    def _dest_lost(self, dest: Dest, error: KvxferError, fenced: bool) -> None:
        raise NotImplementedError

    def _dest_arrival(self, dest: Dest, event: Event) -> None:
        raise NotImplementedError

    def _dest_sent(self, dest: Dest, stream: Stream) -> None:
        raise NotImplementedError

    def _dest_unwanted(self, dest: Dest, error: KvxferError) -> None:
        raise NotImplementedError

    def _dest_stop(self, dest: Dest, error: KvxferError) -> None:
        """Brings a destination that has not ended to its end, here or later."""
        raise NotImplementedError

    def _all_added(self) -> bool:
        raise NotImplementedError

    # ---- ends

    def _dest_end(self, dest: Dest, tell: Optional[KvxferError]) -> None:
        """Nothing moves between it and this rank any more. ``tell``: it is told so, and why."""
        assert dest.state != ENDED
        dest.state = ENDED
        dest.peer.watchers.discard(dest)
        if tell is not None and not dest.gone:
            self._sources.refuse(dest.ask, tell)
        if dest.error is not None:
            self._fail(dest.error)
        self._check_end()

    def _fail(self, error: KvxferError) -> None:
        if self.ended or self._error is not None:
            return
        self._error = error
        for dest in list(self._dests.values()):
            if dest.state in (ASKED, OPEN):
                dest.error = dest.error or error
                self._dest_stop(dest, error)
        self._check_end()

    def _check_end(self) -> None:
        if self.ended or any(dest.state != ENDED for dest in self._dests.values()):
            return
        if self._error is None and not (self.claimed and self._all_added()):
            return
        self._finish()
        self._sources.ended(self)

    def daemon_lost(self, error: KvxferError) -> None:
        self._error = self._error or error
        for dest in self._dests.values():
            dest.state = ENDED
            dest.peer.watchers.discard(dest)
        if not self.ended:
            self._finish()
            self._sources.ended(self)

    def _why_late(self) -> str:
        text = super()._why_late()
        if not self.claimed:
            asked = f"{len(self._dests)} of {self._n_ranks}" if self._n_ranks else "none"
            return f"{text}: {asked} of the decode engine's ranks had asked for it"
        open_ = [dest.ask.name for dest in self._dests.values() if dest.state != ENDED]
        return f"{text}: {', '.join(open_) or 'nobody'} had not got everything"


Key = Tuple[str, str]  # role, id


class _Waiting:
    """An ask whose offer or hold is not there yet. Watches its peer."""

    def __init__(self, sources: "Sources", ask: Ask, peer: Peer) -> None:
        self.sources, self.ask, self.peer = sources, ask, peer
        self.alarm = sources._hub.alarm(ask.until, lambda: sources.expire(self))

    def on_peer_up(self, peer: Peer) -> None:
        """It can be answered."""

    def on_peer_lost(self, peer: Peer, error: KvxferError, fenced: bool) -> None:
        self.sources.gone(self, error)


class Sources:
    """All offers and holds of a rank, and what is asked of those that are not there (yet)."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._things: Dict[Key, Source] = {}
        self._waiting: Dict[Key, Dict[str, _Waiting]] = {}
        self._n_waiting = 0
        self._failed: "OrderedDict[Key, KvxferError]" = OrderedDict()  # ended here, badly
        self._unwanted: "OrderedDict[Key, KvxferError]" = OrderedDict()  # before they began

    def begin(self, thing: Source) -> None:
        """A new offer or hold. Raises Exists. May end at once."""
        key = (thing.role, thing.id)
        if key in self._things:
            raise Exists(f"the {thing.role} of {thing.id!r} has not ended")
        self._things[key] = thing
        self._failed.pop(key, None)
        error = self._unwanted.pop(key, None)
        if error is not None:
            thing._fail(error)
        for one in list(self._waiting.get(key, {}).values()):
            self._forget(one)
            if thing.ended or not thing.asked(one.ask):
                self.ask(one.ask)

    def ended(self, thing: Source) -> None:
        """It has ended: late questions are answered from here."""
        key = (thing.role, thing.id)
        self._things.pop(key, None)
        if thing._error is not None:
            _remember(self._failed, key, thing._error)
            for one in list(self._waiting.get(key, {}).values()):
                self._forget(one)
                self.refuse(one.ask, thing._error)

    def ask(self, ask: Ask) -> None:
        key = (ask.role, ask.id)
        self._unwanted.pop(key, None)
        thing = self._things.get(key)
        if thing is not None and thing.asked(ask):
            return
        if thing is None and key in self._failed:
            self.refuse(ask, self._failed[key])
            return
        if self._n_waiting >= _WAITING_MAX:
            self.refuse(ask, Quota(f"{_WAITING_MAX} requests wait for their offers already"))
            return
        self._forget(self._waiting.get(key, {}).get(ask.name))
        one = _Waiting(self, ask, self._hub.peer(ask.name, ask.address))
        one.peer.watchers.add(one)
        self._waiting.setdefault(key, {})[ask.name] = one
        self._n_waiting += 1

    def unask(self, kind: int, fields: Mapping[str, Any]) -> None:
        """CANCEL or RELEASE. Raises ProtocolError."""
        try:
            key = (str(fields["role"]), str(fields["id"]))
            name, address, token = str(fields["from"]), str(fields["at"]), int(fields["token"])
            error = error_of(fields, name)
        except (KeyError, ValueError, TypeError) as err:
            raise ProtocolError(f"a cancel that cannot be read ({err!r})") from None
        thing = self._things.get(key)
        if thing is not None and thing.unwanted(name, token, error):
            return
        one = self._waiting.get(key, {}).get(name)
        if one is not None and token in (0, one.ask.token):
            self._forget(one)
        elif token:  # of one that has ended
            one = None
        if one is not None or not token:
            _remember(self._unwanted, key, error)
        if kind == CANCEL and token and fields.get("life") == self._hub.geometry.life:
            self._hub.peer(name, address).send(
                FAILED, {"id": key[1], "token": token, **error_fields(error)})

    def refuse(self, ask: Ask, error: KvxferError) -> None:
        if ask.token:
            self._hub.peer(ask.name, ask.address).send(
                FAILED, {"id": ask.id, "token": ask.token, **error_fields(error)})

    def daemon_lost(self, error: KvxferError) -> None:
        for thing in list(self._things.values()):
            thing.daemon_lost(error)
        for asks in list(self._waiting.values()):
            for one in list(asks.values()):
                self._forget(one)

    def open(self) -> List[Source]:
        return list(self._things.values())

    def gone(self, one: _Waiting, error: KvxferError) -> None:
        """Who has asked is gone: what comes later ends at once."""
        self._forget(one)
        _remember(self._unwanted, (one.ask.role, one.ask.id), error)

    def expire(self, one: _Waiting) -> None:
        ask = one.ask
        if self._waiting.get((ask.role, ask.id), {}).get(ask.name) is one:
            self._forget(one)
            self.refuse(ask, Deadline(f"there was no {ask.role} of {ask.id!r} here in time"))

    def _forget(self, one: Optional[_Waiting]) -> None:
        if one is None:
            return
        key = (one.ask.role, one.ask.id)
        one.peer.watchers.discard(one)
        self._hub.no_alarm(one.alarm)
        del self._waiting[key][one.ask.name]
        self._n_waiting -= 1
        if not self._waiting[key]:
            del self._waiting[key]


def _remember(where: "OrderedDict[Key, KvxferError]", key: Key, error: KvxferError) -> None:
    where[key] = error
    where.move_to_end(key)
    while len(where) > _REMEMBERED:
        where.popitem(last=False)
