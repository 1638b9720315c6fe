"""The prefill side of one request: blocks that are offered (WRITE) or held (READ), and the ranks
that they go to. Rank's lock held for everything."""

from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from ..errors import ClientLost, Exists, Invalid, KvxferError
from ..events import Event
from .asks import Ask, Want
from .messages import Message
from .peers import Peer
from .rendezvous import Hub, Rendezvous
from .stream import Stream

if TYPE_CHECKING:
    from .sources import Sources

__all__ = ["Ask", "Dest", "Source", "Want"]

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
