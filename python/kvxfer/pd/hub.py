"""What is behind a Rank: the tables in which everything is found, and what its thread does with each
event. Rank's lock held for everything but start(), stop() and close_regions()."""

import logging
import secrets
import time
from collections import Counter, deque
from typing import Any, Deque, Dict, List, Optional, Sequence, Tuple, Union

from ..client import Client
from ..errors import DaemonLost, Exists, Internal, KvxferError, TryAgain
from ..events import Event, EventType, Op
from ..region import Import
from ..transfer import Transfer
from . import plan
from .dest import Sink
from .geometry import Geometry
from .inbox import Inbox
from .peers import Peer, region_name
from .rendezvous import Outcome, Rendezvous
from .sources import Sources
from .stream import Pair, Piece, Stream, StreamOwner
from .thread import RankThread

__all__ = ["RankHub"]

_log = logging.getLogger("kvxfer")

#: Transfers that are left to the daemon's other uses.
_SPARE_TRANSFERS = 16
#: Other ranks that one knows, as far as only their own word makes it look for them.
_PEERS_MAX = 16384


class RankHub(RankThread):
    """Finder of peers, link of streams, hub of rendezvous.

    Attributes:
        outcomes: not given out yet; may be read without the lock.
        paths: peer's name -> transport.
        sources: offers and holds.
    """

    def __init__(self, client: Client, name: str, patience: float) -> None:
        super().__init__(client, name)
        self.patience = patience
        self.outcomes: Deque[Outcome] = deque()
        self.paths: Dict[str, str] = {}
        self.sources = Sources(self)
        self._max_transfers = max(1, client.limits.max_transfers - _SPARE_TRANSFERS)
        self._saying = False  # stop() waits until everything has been said
        self._sinks: Dict[Tuple[str, str], Sink] = {}
        self._peers: Dict[Tuple[str, str], Peer] = {}
        self._imports: Dict[Import, Peer] = {}
        self._streams: Dict[int, Stream] = {}  # by transfer id
        self._listeners: Dict[int, Any] = {}  # by token
        self._assigned: Dict[Tuple[Any, ...], Tuple[Any, List[Tuple[plan.Take, ...]]]] = {}
        self._inbox = Inbox(self, self.sources, self._listeners)
        self._counts: "Counter[str]" = Counter()
        self._seconds = {role: 0.0 for role in _PLURALS}

    # ---- ends

    def stop(self, timeout: float) -> None:
        """Cancels everything, waits until it has ended, at most ``timeout`` seconds, and ends the
        thread."""
        if self._thread.ident is None:
            return
        with self.lock:
            for thing in self._open():
                self._safely(thing.cancel, "the rank was closed")
            self._saying = True
            self.sleep(self._all_said, time.monotonic() + timeout)
            self._stopping = True
            self._ring()
        self._join()

    def _all_said(self) -> bool:
        return self.broken is not None or not (self._open() or self._outgoing())

    def end_all(self, error: KvxferError) -> None:
        """What is still open ends: the memory is not registered any more."""
        with self.lock:
            self._all_lost(error)

    def _open(self) -> List[Rendezvous]:
        return [*self.sources.open(), *self._sinks.values()]

    def _outgoing(self) -> bool:
        return any(peer.up and peer.pending for peer in self._peers.values())

    # ---- events

    def _on_event(self, event: Event) -> None:
        kind = event.type
        if kind is EventType.TERMINAL:
            self._on_terminal(event)
        elif kind is EventType.ARRIVAL:
            self._on_arrival(event)
        elif kind is EventType.MESSAGE:
            self._inbox.on_frame(event.payload)
        elif kind is EventType.IMPORT_UP or kind is EventType.IMPORT_LOST:
            peer = self._imports.get(event.remote) if event.remote is not None else None
            if peer is not None and event.remote is not None:
                if kind is EventType.IMPORT_UP:
                    peer.on_up(event.remote, event.payload)
                else:
                    peer.on_lost(event.remote, event.error or DaemonLost(event.text))
        elif kind is EventType.REGION_LOST:
            error = event.error or DaemonLost(event.text)
            _log.error("kvxfer: %s: its memory cannot be used any more: %s", self.name, error)
            for thing in self._open():
                thing._fail(error)
        elif kind is EventType.DAEMON_LOST:
            self._on_daemon_lost(event.error or DaemonLost(event.text))

    def _on_terminal(self, event: Event) -> None:
        assert event.transfer is not None
        stream = self._streams.get(event.transfer.id)
        if stream is None:
            return
        self._moved(stream.peer.name, event, "bytes_out" if stream.op is Op.WRITE else "bytes_in")
        self.guard(stream.owner, stream.on_end, event)

    def _on_arrival(self, event: Event) -> None:
        listener = self._listeners.get(event.tag >> 8)
        if listener is None:
            self._counts["arrivals_unknown"] += 1
            return
        self._moved(listener.peer.name, event, "bytes_in" if event.op is Op.WRITE else "bytes_out")
        self.guard(listener, listener.on_arrival, event)

    def _moved(self, peer: str, event: Event, what: str) -> None:
        self._counts[what] += event.bytes
        if event.transport and self.paths.get(peer) != event.transport:
            self.paths[peer] = event.transport
            way = "->" if what == "bytes_out" else "<-"
            self._lines.append(f"kvxfer: {self.name} {way} {peer}: transport {event.transport}")

    def _on_daemon_lost(self, error: KvxferError) -> None:
        self._alive = False
        self._end_of_connection(error)

    def _on_daemon_back(self) -> None:
        for peer in list(self._peers.values()):
            peer.restart()

    def _end_of_connection(self, error: KvxferError) -> None:
        self._all_lost(error)
        for peer in list(self._peers.values()):
            self.guard(None, peer.lose, error, True)
        self._streams.clear()
        self._listeners.clear()
        self._blocked.clear()
        self._polled.clear()
        self._inbox.reset()

    def _all_lost(self, error: KvxferError) -> None:
        self.sources.daemon_lost(error)
        for sink in list(self._sinks.values()):
            self.guard(None, sink.daemon_lost, error)

    # ---- for rendezvous

    def begin(self, sink: Sink) -> None:
        key = (sink.role, sink.id)
        if key in self._sinks:
            raise Exists(f"the {sink.role} of {sink.id!r} has not ended")
        self._sinks[key] = sink
        try:
            sink.begin()
        except Exception as error:
            if sink.undo():
                del self._sinks[key]
                raise
            _log.exception("kvxfer: %s: a defect, please report it", self.name)
            sink.on_defect(Internal(f"a defect in kvxfer.pd ({error!r}): please report it"))

    def peer(self, name: str, address: str) -> Peer:
        key = (name, "" if address == self.address else address)
        peer = self._peers.get(key)
        if peer is None:
            peer = Peer(self, *key)
            if not peer.lost:
                self._peers[key] = peer
        return peer

    def may_meet(self, name: str, address: str) -> bool:
        return len(self._peers) < _PEERS_MAX or (
            name, "" if address == self.address else address) in self._peers

    def assigned(self, there: Sequence[Geometry], group: int) -> List[Tuple[plan.Take, ...]]:
        key = (group, *map(id, there))
        kept = self._assigned.get(key)
        if kept is None:
            if len(self._assigned) > 1024:
                self._assigned.clear()
            kept = self._assigned[key] = (tuple(there), plan.assign(self.geometry, there, group))
        return kept[1]

    def new_token(self) -> int:
        while True:
            token = secrets.randbits(48)
            if token and token not in self._listeners:
                return token

    def listen(self, token: int, to: Any) -> bool:
        return self._listeners.setdefault(token, to) is to

    def unlisten(self, token: int) -> None:
        self._listeners.pop(token, None)

    def finish(self, thing: Rendezvous, outcome: Outcome) -> None:
        self._sinks.pop((thing.role, thing.id), None)
        if outcome.error is None:
            self._counts[_PLURALS[thing.role]] += 1
            self._seconds[thing.role] += outcome.seconds
        else:
            status = outcome.error.status
            self._counts["failed"] += 1
            self._counts[f"failed.{status.name if status is not None else 'OTHER'}"] += 1
        self.outcomes.append(outcome)
        self._told.notify_all()

    def stats(self) -> Dict[str, Union[int, float]]:
        out: Dict[str, Union[int, float]] = {name: 0 for name in _COUNTED}
        out.update(self._counts)
        out.update({f"seconds_{role}": self._seconds[role] for role in _PLURALS})
        out.update(open=len(self._open()), peers=sum(p.up for p in self._peers.values()),
                   running=len(self._streams))
        return out

    # ---- for peers

    def find(self, peer: Peer, region: int) -> Optional[Import]:
        if not self._alive:
            return None
        if not self.free():
            raise TryAgain("an import is being closed")
        try:
            found = self._client.find(peer.address, region_name(peer.name, region))
        except DaemonLost:
            return None
        self._imports[found] = peer
        return found

    def drop(self, imports: Sequence[Import]) -> None:
        for import_ in imports:
            self._imports.pop(import_, None)
        self._closer.add(imports)

    def quiet(self, peer: Peer) -> None:
        if self._saying:
            self._told.notify_all()

    def forget(self, peer: Peer) -> None:
        if self._peers.get((peer.name, peer.address)) is peer:
            del self._peers[peer.name, peer.address]

    def count(self, what: str) -> None:
        self._counts[what] += 1

    # ---- for streams

    def stream(self, owner: StreamOwner, peer: Peer, op: Op, token: int, pairs: Sequence[Pair],
               label: str, until: float) -> Stream:
        return Stream(self, owner, peer, op, token, pairs, label, until)

    def room(self) -> bool:
        return len(self._streams) < self._max_transfers

    def spare(self) -> bool:
        return 2 * len(self._streams) < self._max_transfers

    def submit(self, stream: Stream, pair: Pair, piece: Optional[Piece], tag: int,
               streaming: bool) -> Transfer:
        if not self._alive:
            raise DaemonLost("the daemon is gone")
        transfer = self._client.submit(
            stream.op, self._regions[pair[0]], stream.peer.imports[pair[1]],
            None if piece is None else piece.blocks, tag=tag, streaming=streaming,
            deadline=max(0.001, stream.until - self.now()), label=stream.label,
            **({} if piece is None else piece.options))
        self._streams[transfer.id] = stream
        self._counts["transfers"] += 1
        return transfer

    def ended(self, transfer: Transfer) -> None:
        self._streams.pop(transfer.id, None)
        self._told.notify_all()


_PLURALS = {"offer": "offers", "expect": "expects", "hold": "holds", "fetch": "fetches"}
_COUNTED = (*_PLURALS.values(), "failed", "bytes_out", "bytes_in", "transfers", "messages_out",
            "messages_in")
