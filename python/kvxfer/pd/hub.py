"""What is behind a Rank: the thread that reads the daemon's events, and the tables in which
everything is found. One lock for all of it, held for short times only and never while something
blocks."""

import logging
import math
import os
import random
import secrets
import select
import threading
import time
from collections import Counter, deque
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Set, Tuple, Union

from ..client import Client
from ..errors import DaemonLost, Exists, Internal, KvxferError, TryAgain
from ..events import Event, EventType, Op
from ..gpu import GpuMemory
from ..region import Import, Region
from ..transfer import Transfer
from ..wait import Wait
from . import plan
from .alarms import Alarms
from .closer import Closer
from .dest import Sink
from .geometry import Geometry
from .inbox import Inbox
from .peers import Failing, Peer, region_name
from .rendezvous import Alarm, Outcome, Rendezvous
from .source import Sources
from .stream import Pair, Piece, Stream, StreamOwner

__all__ = ["RankHub"]

_log = logging.getLogger("kvxfer")

_POLL_S = 0.0002  #: between two questions whether an event has come to pass
#: Between two attempts to say what the daemon did not take: twice as long each time.
_BLOCKED_FIRST_S = 0.001
_BLOCKED_MOST_S = 0.032
_LONGEST_S = 3600.0  #: of one sleep: poll(2) takes no more than 24 days
_RECONNECT_FIRST_S = 0.05
_RECONNECT_MOST_S = 1.0
#: Transfers that are left to the daemon's other uses.
_SPARE_TRANSFERS = 16
#: Other ranks that one knows, as far as only their own word makes it look for them.
_PEERS_MAX = 16384


class RankHub:
    """Finder of peers, link of streams, hub of rendezvous. ``lock`` held for everything but start()
    and stop().

    Attributes:
        name, address: of the rank.
        geometry: its own.
        outcomes: not given out yet; may be read without the lock.
        paths: peer's name -> transport.
        sources: offers and holds.
        broken: why the thread has ended; None: it has not. Nothing can be begun any more.
    """

    def __init__(self, client: Client, name: str, patience: float) -> None:
        self.lock = threading.RLock()
        self.name, self.patience = name, patience
        self.address = client.address
        self.geometry = Geometry(())
        self.broken: Optional[KvxferError] = None
        self.outcomes: Deque[Outcome] = deque()
        self.paths: Dict[str, str] = {}
        self.sources = Sources(self)
        self._client = client
        self._regions: List[Region] = []
        self._waits = False  # the daemon knows how to
        self._publish: Callable[[Geometry], List[Region]]
        self._max_transfers = max(1, client.limits.max_transfers - _SPARE_TRANSFERS)
        self._told = threading.Condition(self.lock)
        self._thread = threading.Thread(target=self._run, name="kvxfer-pd", daemon=True)
        self._wake = (-1, -1)
        self._wake_at = 0.0
        self._alive = True  # the daemon is there
        self._saying = False  # stop() waits until everything has been said
        self._stopping = False
        self._sinks: Dict[Tuple[str, str], Sink] = {}
        self._peers: Dict[Tuple[str, str], Peer] = {}
        self._imports: Dict[Import, Peer] = {}
        self._streams: Dict[int, Stream] = {}  # by transfer id
        self._listeners: Dict[int, Any] = {}  # by token
        self._alarms = Alarms()
        self._closer = Closer(self.lock, name, self._ring)
        self._polled: Set[Any] = set()
        self._blocked: Dict[Any, None] = {}
        self._blocked_s = _BLOCKED_FIRST_S
        self._assigned: Dict[Tuple[Any, ...], Tuple[Any, List[Tuple[plan.Take, ...]]]] = {}
        self._inbox = Inbox(self, self.sources, self._listeners)
        self._counts: "Counter[str]" = Counter()
        self._seconds = {role: 0.0 for role in _PLURALS}
        self._lines: List[str] = []  # to be logged

    # ---- life

    def start(self, geometry: Geometry, publish: Callable[[Geometry], List[Region]]) -> None:
        """``publish``: registers the memory and publishes it with that note. Blocks. Raises what it
        raises, and has no effect then."""
        geometry = geometry.reborn()
        self._regions = publish(geometry)
        self._waits = self._ask_waits()
        self.geometry, self._publish = geometry, publish
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closer.start()
        self._thread.start()

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
        self._thread.join()
        self._closer.stop()
        for fd in self._wake:
            os.close(fd)
        self._wake = (-1, -1)

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

    # ---- the thread

    def _run(self) -> None:
        try:
            self._loop()
        except Exception as error:
            _log.exception("kvxfer: %s: its thread has ended: everything open fails; close the "
                           "rank, and please report this", self.name)
            self._break(Internal(f"the thread of the rank {self.name!r} has ended ({error!r}): "
                                 "close the rank, make a new one, and please report this"))

    def _loop(self) -> None:
        poller, waker = select.poll(), select.poll()
        for one in (poller, waker):
            one.register(self._wake[0], select.POLLIN)
        poller.register(self._client.fileno(), select.POLLIN)
        while True:
            with self.lock:
                if self._stopping:
                    return
                timeout = self._timeout()
                self._wake_at = self.now() + timeout
                free = self.free()
            if timeout == _POLL_S:
                time.sleep(timeout)
                timeout = 0
            # While an import is being closed nobody can read events; its end wakes this thread.
            ready = (poller if free else waker).poll(math.ceil(min(timeout, _LONGEST_S) * 1000))
            for fd, _ in ready:
                if fd == self._wake[0]:
                    _drain(fd)
            self._turn(any(fd != self._wake[0] for fd, _ in ready))
            if not self._alive:
                self._wait_for_daemon()

    def _break(self, error: KvxferError) -> None:
        """The thread ends: so does everything that is open, as soon as the daemon has confirmed
        that nothing of this rank's memory is in use any more."""
        with self.lock:
            self.broken = error
            self._told.notify_all()
        pause = _RECONNECT_FIRST_S
        while not self._stopping:  # else it is close() that goes on
            try:
                self.close_regions()
            except KvxferError as err:
                _log.error("kvxfer: %s: its memory may still be written to: %s", self.name, err)
                self._nap(pause)
                pause = min(2 * pause, _RECONNECT_MOST_S)
                continue
            with self.lock:
                self._alive = False
                self._end_of_connection(error)
            return

    def _timeout(self) -> float:
        self._wake_at = 0.0
        if self._polled:
            return _POLL_S
        if self._blocked and self.free():
            return self._blocked_s
        return max(0.0, self._alarms.next - self.now())

    def _turn(self, readable: bool) -> None:
        events = self._client.poll() if readable else ()
        with self.lock:
            self._wake_at = 0.0
            for event in events:
                self._safely(self._on_event, event)
            self._alarms.ring(self.now, self._safely)
            self._go_on(bool(events))
            for thing in list(self._polled):
                self.guard(thing, self._poll_thing, thing)
            lines, self._lines = self._lines, []
        for line in lines:
            _log.info("%s", line)
        if readable and not events:  # another thread is in a call of the client
            time.sleep(_POLL_S)

    def _poll_thing(self, thing: Any) -> None:
        self._polled.discard(thing)
        if thing.on_poll():
            self._polled.add(thing)

    def _go_on(self, heard: bool) -> None:
        """What the daemon did not take before is tried again; where it still takes nothing and says
        nothing, less and less often."""
        blocked, self._blocked = self._blocked, {}
        for one in blocked:
            self.guard(one, one.go)
        if heard or len(self._blocked) < len(blocked) or not blocked:
            self._blocked_s = _BLOCKED_FIRST_S
        else:
            self._blocked_s = min(2 * self._blocked_s, _BLOCKED_MOST_S)

    def _safely(self, call: Callable[..., Any], *args: Any) -> Any:
        """A defect in what one event does must not end the thread, and with it everything else."""
        try:
            return call(*args)
        except Exception:
            _log.exception("kvxfer: %s: a defect, please report it", self.name)
            return None

    def guard(self, whom: Optional[Failing], call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            _log.exception("kvxfer: %s: a defect, please report it", self.name)
            if whom is not None:
                self._safely(whom.on_defect, Internal(f"a defect in kvxfer.pd ({error!r}): please "
                                                      "report it"))

    def _nap(self, seconds: float) -> None:
        """Sleeps, at most until it is rung for."""
        poller = select.poll()
        poller.register(self._wake[0], select.POLLIN)
        if poller.poll(math.ceil(seconds * 1000)):
            _drain(self._wake[0])

    def _wait_for_daemon(self) -> None:
        pause, connected = _RECONNECT_FIRST_S, False
        _log.warning("kvxfer: %s: the daemon is gone; waiting for it", self.name)
        for region in self._regions:  # to be published anew, as another life
            region.close()
        while not self._stopping:
            try:
                if not connected:
                    self._client.reconnect()
                    connected = True
                geometry = self.geometry.reborn()
                regions, address = self._publish(geometry), self._client.address
                waits = self._ask_waits()
            except KvxferError as error:
                _log.debug("kvxfer: %s: not connected again: %s", self.name, error)
                connected = connected and not self._lost_again()
                with self.lock:  # deadlines of what was begun meanwhile
                    self._alarms.ring(self.now, self._safely)
                self._nap(pause * (0.5 + random.random()))
                pause = min(2 * pause, _RECONNECT_MOST_S)
                continue
            with self.lock:
                self.geometry, self._regions, self.address = geometry, regions, address
                self._waits = waits
                self._alive = True
                for peer in list(self._peers.values()):
                    peer.restart()
            _log.info("kvxfer: %s: connected to the daemon again", self.name)
            return

    def _lost_again(self) -> bool:
        """While it was not told to anybody that the daemon was back."""
        try:
            return any(event.type is EventType.DAEMON_LOST for event in self._client.poll())
        except DaemonLost:
            return True

    def _ask_waits(self) -> bool:
        """Blocks."""
        return int(self._client.query("status").get("limits", {}).get("waits_per_client", 0)) > 0

    def daemon_wait(self, wait: Wait) -> Optional[Wait]:
        """The same as the daemon is to be told of it; None: it cannot wait for that. Lock held."""
        if not self._waits:
            return None
        if not wait.is_event:
            return wait
        for region in self._regions:
            if isinstance(region.memory, GpuMemory):
                return wait.on(region)
        return None

    def close_regions(self) -> None:
        """Blocks until no DMA to or from them is possible. Raises Deadline."""
        for region in reversed(self._regions):  # the first last: see Peer.on_lost
            region.close()

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

    def _end_of_connection(self, error: KvxferError) -> None:
        """Nothing moves any more, and nothing is heard."""
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

    def now(self) -> float:
        return time.monotonic()

    def alarm(self, when: float, call: Callable[[], Any]) -> Alarm:
        alarm = self._alarms.add(when, call)
        if when < self._wake_at:
            self._ring()
        return alarm

    def no_alarm(self, alarm: Alarm) -> None:
        self._alarms.remove(alarm)

    def _ring(self) -> None:
        """Wakes the thread, unless it is awake or about to look."""
        self._wake_at = 0.0
        if self._wake[1] < 0:  # it has not begun, or is over
            return
        try:
            os.write(self._wake[1], b"x")
        except BlockingIOError:
            pass

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

    def poll_soon(self, thing: Any) -> None:
        self._polled.add(thing)
        if self._wake_at > self.now() + _POLL_S:
            self._ring()

    def sleep(self, over: Callable[[], bool], until: Optional[float]) -> bool:
        while not over():
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._told.wait(left)
        return True

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

    def free(self) -> bool:
        return not self._closer.busy

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

    def blocked(self, what: Any) -> None:
        self._blocked[what] = None
        if self._wake_at > self.now() + self._blocked_s and self.free():
            self._ring()


_PLURALS = {"offer": "offers", "expect": "expects", "hold": "holds", "fetch": "fetches"}
_COUNTED = (*_PLURALS.values(), "failed", "bytes_out", "bytes_in", "transfers", "messages_out",
            "messages_in")


def _drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        pass
