"""The thread of a rank: reads the daemon's events, rings alarms, tries again what the daemon did not
take, and waits for the daemon when it is lost. One lock for everything, held for short times only
and never while something blocks."""

import logging
import math
import os
import random
import select
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Set

from ..client import Client
from ..errors import DaemonLost, Internal, KvxferError
from ..events import Event, EventType
from ..gpu import GpuMemory
from ..region import Region
from ..wait import Wait
from .alarms import Alarms
from .closer import Closer
from .geometry import Geometry
from .peers import Failing
from .rendezvous import Alarm

__all__ = ["RankThread"]

_log = logging.getLogger("kvxfer")

_POLL_S = 0.0002  #: between two questions whether an event has come to pass
#: Between two attempts to say what the daemon did not take: twice as long each time.
_BLOCKED_FIRST_S = 0.001
_BLOCKED_MOST_S = 0.032
_LONGEST_S = 3600.0  #: of one sleep: poll(2) takes no more than 24 days
_RECONNECT_FIRST_S = 0.05
_RECONNECT_MOST_S = 1.0


class RankThread:
    """``lock`` held for what rendezvous, peers and streams call.

    Attributes:
        name, address: of the rank.
        geometry: its own.
        broken: why the thread has ended; None: it has not. Nothing can be begun any more.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.lock = threading.RLock()
        self.name, self.address = name, client.address
        self.geometry = Geometry(())
        self.broken: Optional[KvxferError] = None
        self._client = client
        self._regions: List[Region] = []
        self._waits = False  # the daemon knows how to
        self._publish: Callable[[Geometry], List[Region]]
        self._told = threading.Condition(self.lock)
        self._thread = threading.Thread(target=self._run, name="kvxfer-pd", daemon=True)
        self._wake = (-1, -1)
        self._wake_at = 0.0
        self._alive = True  # the daemon is there
        self._stopping = False
        self._alarms = Alarms()
        self._closer = Closer(self.lock, name, self._ring)
        self._polled: Set[Any] = set()
        self._blocked: Dict[Any, None] = {}
        self._blocked_s = _BLOCKED_FIRST_S
        self._lines: List[str] = []  # to be logged

    # ---- of the hub

    def _on_event(self, event: Event) -> None:
        """What a defect in it raises is logged."""
        raise NotImplementedError

    def _end_of_connection(self, error: KvxferError) -> None:
        """Nothing moves any more, and nothing is heard."""
        raise NotImplementedError

    def _on_daemon_back(self) -> None:
        """The memory is published again, as another life."""
        raise NotImplementedError

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

    def _join(self) -> None:
        """It was told to stop. Blocks; lock not held."""
        self._thread.join()
        self._closer.stop()
        for fd in self._wake:
            os.close(fd)
        self._wake = (-1, -1)

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
                self._on_daemon_back()
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

    # ---- for rendezvous, peers and streams

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

    def free(self) -> bool:
        return not self._closer.busy

    def blocked(self, what: Any) -> None:
        self._blocked[what] = None
        if self._wake_at > self.now() + self._blocked_s and self.free():
            self._ring()


def _drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        pass
