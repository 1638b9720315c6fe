"""The prefill side: blocks that are offered (WRITE) or held (READ), and the ranks that ask for
them."""

from collections import OrderedDict
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..errors import ClientLost, Deadline, Exists, Invalid, KvxferError, ProtocolError, Quota
from ..events import Event
from .asks import ASKS_MAX, ASKS_MAX_EACH, Ask, Ledger, Tokens, Want, short
from .messages import CANCEL, CLAIM, FAILED, READY, Message
from .peers import Peer
from .rendezvous import ADDRESS_MAX, ID_MAX, NAME_MAX, Hub, Rendezvous, error_fields, error_of
from .stream import Stream

__all__ = ["Ask", "Dest", "Source", "Sources", "Want"]

_REMEMBERED = 4096
_WAITING_MAX = 65536

#: States of a destination.
ASKED = "asked"  #: it is being connected to
OPEN = "open"  #: offer: what is added goes there; hold: it has the block ids and reads
ENDING = "ending"  #: it has been told to stop, or its stream is being cancelled
ENDED = "ended"


class Dest:
    """One destination rank of an offer or a hold. Watches its peer."""

    def __init__(self, source: "Source", ask: Ask, peer: Peer) -> None:
        self.source, self.ask, self.peer = source, ask, peer
        self.state = ASKED
        self.error: Optional[KvxferError] = None
        self.arrived = 0  # READ
        self.gone = False  # nothing can be told to it any more
        self.data: Any = None  # the offer's

    @property
    def ending(self) -> bool:
        return self.state == ENDING

    def tell_end(self) -> None:
        self.source._dest_tell_end(self)

    def on_peer_up(self, peer: Peer) -> None:
        if self.state == ASKED and self.ask.outlived(peer.geometry):
            return  # the one that has asked is found when this one is lost
        self.source._dest_up(self)

    def on_peer_missing(self, peer: Peer) -> None:
        if self.state == ASKED:
            self.on_peer_lost(peer, self.ask.gone(), True)

    def on_peer_lost(self, peer: Peer, error: KvxferError, fenced: bool) -> None:
        if self.state == ASKED and self.ask.outlived(peer.geometry):
            self.source._dest_seek(self)
        elif self.state != ENDED:
            self.gone = fenced
            self.error = self.error or error
            self.source._dest_lost(self, error, fenced)

    def on_defect(self, error: KvxferError) -> None:
        self.source.on_defect(error)

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
        if len(self._dests) >= ask.n_ranks:
            self._sources.refuse(ask, Invalid(f"{ask.engine} has {ask.n_ranks} ranks, and as many "
                                              f"others have asked for {self.id!r}"))
            return True
        self._sources.ledger.add(ask)
        dest = self._dests[ask.name] = Dest(self, ask, self._hub.peer(ask.name, ask.address))
        self._n_ranks = ask.n_ranks
        self.claimed = len(self._dests) == self._n_ranks
        self.infos += (ask.info,)
        if not ask.token:
            dest.state = ENDED
            self._check_end()
            return True
        self._dest_watch(dest)
        return True

    def _dest_watch(self, dest: Dest) -> None:
        dest.peer.watchers.add(dest)
        if dest.peer.up:
            self._hub.guard(dest, dest.on_peer_up, dest.peer)

    def _check_life(self, dest: Dest) -> None:
        """Raises ClientLost: who is there now is not the one that has asked."""
        if dest.peer.geometry is None or dest.peer.geometry.life != dest.ask.life:
            raise ClientLost(f"{dest.ask.name} has started anew since it asked for {self.id!r}")

    def _dest_seek(self, dest: Dest) -> None:
        """An earlier life of the rank that has asked is lost: the one that has asked is there."""
        dest.peer = self._hub.peer(*dest.ask.who)
        self._dest_watch(dest)

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

    def _dest_tell_end(self, dest: Dest) -> None:
        """Of a hold: tells it, which is up, to stop reading."""

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
        self._end()

    def _end(self) -> None:
        self._finish()
        self._sources.ended(self)

    def daemon_lost(self, error: KvxferError) -> None:
        self._error = self._error or error
        for dest in self._dests.values():
            dest.state = ENDED
            dest.peer.watchers.discard(dest)
        if not self.ended:
            self._end()

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

    def on_peer_missing(self, peer: Peer) -> None:
        self.sources.gone(self, self.ask.gone())

    def on_peer_lost(self, peer: Peer, error: KvxferError, fenced: bool) -> None:
        if self.ask.outlived(peer.geometry):
            self.peer = self.sources._hub.peer(*self.ask.who)
            self.peer.watchers.add(self)
        else:
            self.sources.gone(self, error)

    def on_defect(self, error: KvxferError) -> None:
        self.sources.gone(self, error)


class _Late:
    """A refusal for a rank of which an earlier life has not been told to be lost. Watches that."""

    def __init__(self, sources: "Sources", who: Tuple[str, str], fields: Mapping[str, Any]) -> None:
        self._sources, self._who, self._fields = sources, who, fields

    def on_peer_up(self, peer: Peer) -> None:
        """It was."""

    def on_peer_missing(self, peer: Peer) -> None:
        """It was up."""

    def on_peer_lost(self, peer: Peer, error: KvxferError, fenced: bool) -> None:
        self._sources.late -= 1
        self._sources.tell(*self._who, FAILED, self._fields)

    def on_defect(self, error: KvxferError) -> None:
        """It was not told; it asks again, or its deadline passes."""


class Sources:
    """All offers and holds of a rank, and what is asked of those that are not there (yet).

    Attributes:
        ledger: bytes of the asks that are kept.
        late: number of answers that wait for the loss of an earlier life.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.ledger = Ledger()
        self.late = 0
        self._things: Dict[Key, Source] = {}
        self._waiting: Dict[Key, Dict[str, _Waiting]] = {}
        self._n_waiting = 0
        self._failed: "OrderedDict[Key, KvxferError]" = OrderedDict()  # ended here, badly
        self._unwanted: "OrderedDict[Key, KvxferError]" = OrderedDict()  # before they began
        self._tokens = Tokens()

    def begin(self, thing: Source) -> None:
        """A new offer or hold. Raises Exists. May end at once."""
        key = (thing.role, thing.id)
        if key in self._things:
            raise Exists(f"the {thing.role} of {thing.id!r} has not ended")
        self._things[key] = thing
        thing.watch_clock()
        self._failed.pop(key, None)
        error = self._unwanted.pop(key, None)
        if error is not None:
            thing._fail(error)
        for one in list(self._waiting.get(key, {}).values()):
            self._forget(one)
            self._hub.guard(thing, self._place_again, thing, one.ask)

    def _place_again(self, thing: Source, ask: Ask) -> None:
        if thing.ended or not thing.asked(ask):
            self._place(ask)

    def ended(self, thing: Source) -> None:
        """It has ended: late questions are answered from here."""
        key = (thing.role, thing.id)
        self._things.pop(key, None)
        for dest in thing._dests.values():
            self.ledger.remove(dest.ask)
        if thing._error is not None:
            _remember(self._failed, key, thing._error)
            for one in list(self._waiting.get(key, {}).values()):
                self._forget(one)
                self.refuse(one.ask, thing._error)

    # ---- what comes from other ranks

    def ask(self, ask: Ask) -> None:
        """READY or CLAIM."""
        if ask.token:
            if ask.token in self._tokens:
                error = self._tokens.error(ask.token)
                self._hub.count("asks_late" if error is not None else "asks_again")
                if error is not None:
                    self.refuse(ask, error)
                return
            self._tokens.add(ask.token, None)
        self._place(ask)

    def _place(self, ask: Ask) -> None:
        key = (ask.role, ask.id)
        self._unwanted.pop(key, None)
        if not self._make_room(ask):
            return
        thing = self._things.get(key)
        if thing is not None and thing.asked(ask):
            return
        if thing is None and key in self._failed:
            self.refuse(ask, self._failed[key])
            return
        self._forget(self._waiting.get(key, {}).get(ask.name))
        one = _Waiting(self, ask, self._hub.peer(*ask.who))
        one.peer.watchers.add(one)
        self._waiting.setdefault(key, {})[ask.name] = one
        self._n_waiting += 1
        self.ledger.add(ask)

    def _make_room(self, ask: Ask) -> bool:
        """Whether it may be kept; if not, it was refused."""
        if not self._hub.may_meet(*ask.who):
            self._over(ask, "it knows too many other ranks")
        elif self._n_waiting >= _WAITING_MAX:
            self._over(ask, f"{_WAITING_MAX} requests wait for their offers already")
        elif self.ledger.of(ask.who) + ask.cost > ASKS_MAX_EACH:
            self._over(ask, f"what {ask.name} has asked for and not got takes more than "
                            f"{ASKS_MAX_EACH} bytes")
        else:
            while self.ledger.total + ask.cost > ASKS_MAX:
                oldest = self._oldest_of(self.ledger.worst())
                if oldest is None or oldest.ask.who == ask.who:
                    break
                self._forget(oldest)
                self._over(oldest.ask, self._full())
            else:
                return True
            self._over(ask, self._full())
        return False

    def _full(self) -> str:
        return f"what other ranks have asked for and not got takes more than {ASKS_MAX} bytes"

    def _over(self, ask: Ask, why: str) -> None:
        self._hub.count("asks_refused")
        self.refuse(ask, Quota(f"{self._hub.name} takes no more requests: {why}"))

    def _oldest_of(self, who: Tuple[str, str]) -> "Optional[_Waiting]":
        for asks in self._waiting.values():
            one = asks.get(who[0])
            if one is not None and one.ask.who == who:
                return one
        return None

    def unask(self, kind: int, fields: Mapping[str, Any]) -> None:
        """CANCEL or RELEASE. Raises ProtocolError."""
        try:
            key = (short(fields, "role", 8), short(fields, "id", ID_MAX))
            name, address = short(fields, "from", NAME_MAX), short(fields, "at", ADDRESS_MAX)
            token = int(fields["token"])
            error = error_of(fields, name)
        except (KeyError, ValueError, TypeError) as err:
            raise ProtocolError(f"a cancel that cannot be read ({err!r})") from None
        if token and token not in self._tokens:
            self._tokens.add(token, error)
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
            self.tell(name, address, FAILED, {"id": key[1], "token": token, **error_fields(error)})

    def dropped(self, kind: int, fields: Mapping[str, Any], error: KvxferError) -> None:
        """READY or CLAIM, of which only the fields are known: it had to make room. Raises
        ProtocolError."""
        assert kind in (READY, CLAIM)
        try:
            token, id_ = int(fields["token"]), short(fields, "id", ID_MAX)
            name, address = short(fields, "from", NAME_MAX), short(fields, "at", ADDRESS_MAX)
        except (KeyError, ValueError, TypeError) as err:
            raise ProtocolError(f"a request for blocks that cannot be read ({err!r})") from None
        if token:
            self._tokens.add(token, error)
            self.tell(name, address, FAILED, {"id": id_, "token": token, **error_fields(error)})

    # ---- answers

    def refuse(self, ask: Ask, error: KvxferError) -> None:
        if not ask.token:
            return
        fields = {"id": ask.id, "token": ask.token, **error_fields(error)}
        if self._hub.may_meet(*ask.who):
            peer = self._hub.peer(*ask.who)
            if ask.outlived(peer.geometry) and self.late < _REMEMBERED:
                self.late += 1
                peer.watchers.add(_Late(self, ask.who, fields))
                return
        self.tell(*ask.who, FAILED, fields)

    def tell(self, name: str, address: str, kind: int, fields: Mapping[str, Any]) -> None:
        """Answers, where that does not make this rank know too many others."""
        if self._hub.may_meet(name, address):
            self._hub.peer(name, address).send(kind, fields)
        else:
            self._hub.count("answers_dropped")

    # ---- ends

    def daemon_lost(self, error: KvxferError) -> None:
        for thing in list(self._things.values()):
            self._hub.guard(None, thing.daemon_lost, error)
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
        self.ledger.remove(one.ask)
        if not self._waiting[key]:
            del self._waiting[key]


def _remember(where: "OrderedDict[Key, KvxferError]", key: Key, error: KvxferError) -> None:
    error.__traceback__ = error.__context__ = None  # which would keep what was asked
    where[key] = error
    where.move_to_end(key)
    while len(where) > _REMEMBERED:
        where.popitem(last=False)
