"""All offers and holds of a rank, and what other ranks ask of those that are not there (yet).
Rank's lock held for everything."""

from collections import OrderedDict
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..errors import Deadline, Exists, KvxferError, ProtocolError, Quota
from .asks import ASKS_MAX, ASKS_MAX_EACH, Ask, Ledger, Tokens, short
from .messages import CANCEL, CLAIM, FAILED, READY
from .peers import Peer
from .rendezvous import ADDRESS_MAX, ID_MAX, NAME_MAX, Hub, error_fields, error_of
from .source import Source

__all__ = ["Sources"]

_REMEMBERED = 4096
_WAITING_MAX = 65536

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
