"""The getter's side: what this process asks other processes for.

A fetch is asked once and then goes on by itself: the owner grants it when the bytes are there, the
READ is submitted when the grant comes, and its end is noted. ``get`` only looks, or sleeps until
there is something to see. So polling costs no messages, and the bytes of something that was asked
for before it was put are here before the next poll.

Events come in the link's thread; ``start``, ``wait`` and the rest may be called from any thread.
One lock; nothing is sent while it is held but by the link, which does not block.
"""

import enum
import itertools
import logging
import random
import threading
import time
from typing import Any, Dict, Optional

import kvxfer

from . import wire
from .link import Link, Peer, Route
from .pool import ManagedBuffer, Pool, PoolFull, PoolTooSmall

__all__ = ["Fetch", "FetchError", "Fetches", "SizeMismatch", "State"]


class FetchError(RuntimeError):
    """A get that cannot succeed; the text says why."""


class SizeMismatch(FetchError):
    """The owner's object has another size than the metadata said, or than was moved."""


class State(enum.Enum):
    NEW = 0  #: not asked: the owner has not been found
    ASKED = 1  #: no answer yet
    WAITING = 2  #: the owner will grant it when it is there
    GRANTED = 3  #: to be read: no room in the pool, or the owner's pool not found yet
    READING = 4
    DONE = 5
    FAILED = 6  #: ``error`` says why


_OVER = (State.DONE, State.FAILED)

#: Seconds for which a pool that was named exactly may be missing: its daemon restarts.
_MISSING_S = 5.0


class Fetch:
    """One key. The lock of its Fetches guards it; ``changed`` is a condition on it.

    Attributes:
        owner: the connector that asked.
        buffer: READING: where to. DONE: the bytes, unless ``data`` has them.
        fast: raw bytes; else serialised.
        known: WAITING: it is there, but another getter is at it.
    """

    def __init__(self, key: str, route: Route, expected: int, owner: Any,
                 lock: threading.Lock) -> None:
        self.key = key
        self.route = route
        self.expected = expected
        self.owner = owner
        self.changed = threading.Condition(lock)
        self.state = State.NEW
        self.claim = 0
        self.peer: Optional[Peer] = None
        self.grant: Optional[wire.Grant] = None
        self.buffer: Optional[ManagedBuffer] = None
        self.data: Optional[bytes] = None
        self.transfer: Optional[kvxfer.Transfer] = None
        self.error: Optional[Exception] = None
        self.known = False
        self.over = False  # given up while its READ was under way
        self.lease = 0.0
        self.looked = self.begun = time.monotonic()

    @property
    def fast(self) -> bool:
        return self.grant is not None and self.grant.fast

    @property
    def size(self) -> int:
        return self.grant.size if self.grant is not None else 0


class Fetches:
    """All fetches of a stage process."""

    def __init__(self, link: Link, pool: Pool, name: str, log: logging.Logger) -> None:
        self._link = link
        self._pool = pool
        self._name = name
        self._log = log
        self.region: Optional[kvxfer.Region] = None
        self.require: Optional[str] = None
        self._lock = threading.Lock()
        self._by_key: Dict[str, Fetch] = {}
        self._by_claim: Dict[int, Fetch] = {}
        self._claims = itertools.count(random.SystemRandom().getrandbits(62) << 1 | 1)

    # ---- any thread

    def start(self, key: str, route: Route, expected: int, owner: Any, lease: float) -> Fetch:
        """The fetch of that key, asked for if it was not. ``lease``: seconds after which it is
        given up when nobody looks for it. Does not block."""
        with self._lock:
            fetch = self._by_key.get(key)
            if fetch is None:
                fetch = Fetch(key, route, expected, owner, self._lock)
                self._by_key[key] = fetch
            fetch.lease = lease
            fetch.looked = time.monotonic()
            if fetch.state is State.NEW:
                fetch.route = route
                self._again(fetch)
            elif fetch.state is State.GRANTED:
                self._read(fetch)
            fetch.over = False
            return fetch

    def wait(self, fetch: Fetch, until: float, patient: bool) -> State:
        """Sleeps until it is over, or (not patient) until it is known that the owner has nothing
        now; at most until ``until`` (time.monotonic())."""
        with self._lock:
            while fetch.state not in _OVER:
                if not patient and self._nothing_to_see(fetch):
                    break
                left = until - time.monotonic()
                if left <= 0:
                    break
                fetch.changed.wait(min(left, 0.05) if fetch.state in (State.NEW, State.GRANTED)
                                   else left)
                if fetch.state is State.NEW:
                    route = fetch.route
                    fetch.route = self._link.route(route.address, route.name, route.is_pool)
                    self._again(fetch)
                elif fetch.state is State.GRANTED:
                    self._read(fetch)
            fetch.looked = time.monotonic()
            return fetch.state

    def _nothing_to_see(self, fetch: Fetch) -> bool:
        if fetch.state is State.NEW:
            return fetch.route.error is not None or not self._link.up
        return fetch.state is State.WAITING

    def take(self, fetch: Fetch) -> bool:
        """A fetch that is over is given to the caller, with its buffer. False: another thread has
        taken it."""
        with self._lock:
            if self._by_key.get(fetch.key) is not fetch or fetch.state not in _OVER:
                return False
            self._remove(fetch)
            return True

    def abandon(self, plain: str, owner: Any) -> None:
        """Forgets a connector's fetches of a key (as given to ``get``, any stages) that have not
        been granted; those whose bytes are under way go on."""
        with self._lock:
            for fetch in [f for f in self._by_key.values()
                          if f.owner is owner and f.key.startswith(plain)]:
                if fetch.state in (State.NEW, State.ASKED, State.WAITING) \
                        and plain in (fetch.key, fetch.key.rpartition("@")[0]):
                    self._give_up(fetch)

    def give_up(self, fetch: Fetch) -> None:
        """Ends a fetch in any state: a READ is cancelled; its buffer is freed after the fence."""
        with self._lock:
            if self._by_key.get(fetch.key) is fetch:
                self._give_up(fetch)

    def give_up_owner(self, owner: Any) -> None:
        with self._lock:
            for fetch in [f for f in self._by_key.values() if f.owner is owner]:
                self._give_up(fetch)

    def close(self) -> None:
        """After the client was closed, which fenced everything: no events come any more."""
        with self._lock:
            for fetch in list(self._by_key.values()):
                self._remove(fetch)
                self._fail(fetch, FetchError("the connector was closed"))

    def under_way(self, owner: Any) -> int:
        """READs of a connector that have not ended."""
        with self._lock:
            return sum(f.owner is owner and f.transfer is not None
                       for f in self._by_claim.values())

    def expire(self, now: float) -> None:
        """Gives up what nobody has looked for."""
        with self._lock:
            for fetch in [f for f in self._by_key.values() if now - f.looked > f.lease]:
                if fetch.state is not State.READING:
                    self._log.info("%s: nobody asks for it any more (%s)", fetch.key,
                                   fetch.state.name)
                    self._give_up(fetch)

    def stats(self) -> Dict[str, int]:
        with self._lock:
            counts = {state.name.lower(): 0 for state in State}
            for fetch in self._by_key.values():
                counts[fetch.state.name.lower()] += 1
            return counts

    # ---- the link's thread

    def on_route(self, route: Route) -> None:
        with self._lock:
            for fetch in [f for f in self._by_key.values()
                          if f.route is route and f.state is State.NEW]:
                if route.peer is not None:
                    self._ask(fetch)
                fetch.changed.notify_all()

    def on_peer_up(self, peer: Peer) -> None:
        with self._lock:
            for fetch in [f for f in self._by_key.values()
                          if f.peer is peer and f.state is State.GRANTED]:
                self._read(fetch)

    def on_grant(self, grant: wire.Grant) -> None:
        """The owner has it. When nobody wants it any more, the owner knows from ABANDON."""
        with self._lock:
            fetch = self._by_claim.get(grant.claim)
            if fetch is None or fetch.state not in (State.ASKED, State.WAITING):
                return
            fetch.grant = grant
            if not self._check_size(fetch):
                return
            if grant.data is not None:
                self._take_inline(fetch, grant)
            else:
                self._read(fetch)

    def on_wait(self, wait: wire.Wait) -> None:
        with self._lock:
            fetch = self._by_claim.get(wait.claim)
            if fetch is not None and fetch.state is State.ASKED:
                fetch.known = wait.known
                self._move(fetch, State.WAITING)

    def on_refuse(self, refuse: wire.Refuse) -> None:
        with self._lock:
            fetch = self._by_claim.get(refuse.claim)
            if fetch is not None and fetch.state in (State.ASKED, State.WAITING):
                self._fail(fetch, SizeMismatch(refuse.text) if " was told " in refuse.text
                           else FetchError(refuse.text))

    def on_read(self, fetch: Fetch, event: kvxfer.Event) -> None:
        """The READ has ended: nothing writes to the buffer any more."""
        with self._lock:
            fetch.transfer = None
            self._by_claim.pop(fetch.claim, None)
            ok = event.error is None and event.bytes == fetch.size and not fetch.over
            if fetch.peer is not None:
                self._link.send(fetch.peer, wire.Done(fetch.claim, event.tag, ok))
            if fetch.over:
                self._remove(fetch)
                self._fail(fetch, FetchError("given up"))
            elif event.error is not None:
                self._read_failed(fetch, event.error)
            elif event.bytes != fetch.size:
                self._fail(fetch, SizeMismatch(f"{event.bytes} bytes came of {fetch.size}"))
            else:
                if fetch.peer is not None:
                    fetch.peer.nbytes += event.bytes
                self._move(fetch, State.DONE)

    def on_peer_lost(self, peer: Optional[Peer], error: Exception, final: bool) -> None:
        """The owner (None: the daemon, and with it everybody) is gone. READs end by themselves;
        what was only asked for is asked again, or fails where the owner cannot come back."""
        with self._lock:
            for fetch in list(self._by_key.values()):
                if peer not in (None, fetch.peer) or fetch.peer is None:
                    continue
                if fetch.state in (State.ASKED, State.WAITING, State.GRANTED):
                    if peer is not None and not peer.lost:
                        self._link.send(peer, wire.Abandon(fetch.claim))
                    self._start_over(fetch, error if final and fetch.route.is_pool else None)

    # ---- lock held

    def _move(self, fetch: Fetch, state: State) -> None:
        fetch.state = state
        fetch.changed.notify_all()

    def _fail(self, fetch: Fetch, error: Exception) -> None:
        self._by_claim.pop(fetch.claim, None)
        self._release(fetch)
        fetch.error = error
        self._move(fetch, State.FAILED)

    def _again(self, fetch: Fetch) -> None:
        """NEW: asked as soon as the route leads somewhere."""
        route = fetch.route
        missing = isinstance(route.error, kvxfer.errors.NotFound) and route.is_pool
        if route.dead or missing and time.monotonic() > fetch.begun + _MISSING_S:
            self._fail(fetch, FetchError(f"the process that put {fetch.key} is gone: no {route}"))
            return
        self._ask(fetch)

    def _ask(self, fetch: Fetch) -> None:
        peer = fetch.route.peer
        if peer is None or peer.lost:
            return
        fetch.peer = peer
        fetch.claim = next(self._claims) & (2**64 - 1)
        self._by_claim[fetch.claim] = fetch
        address = self._link.address if peer.address else ""
        fetch.state = State.ASKED
        self._link.send(peer, wire.Claim(fetch.claim, fetch.expected, fetch.key, self._name,
                                         address))

    def _check_size(self, fetch: Fetch) -> bool:
        """Whether the owner's size is what the metadata said. Else the grant is given back."""
        grant = fetch.grant
        if grant is None or fetch.expected in (-1, grant.size):
            return True
        assert fetch.peer is not None
        self._link.send(fetch.peer, wire.Done(grant.claim, grant.put, False))
        self._fail(fetch, SizeMismatch(f"{fetch.key} has {grant.size} bytes at the owner, the "
                                       f"metadata said {fetch.expected}"))
        return False

    def _take_inline(self, fetch: Fetch, grant: wire.Grant) -> None:
        assert grant.data is not None and fetch.peer is not None
        ok = len(grant.data) == grant.size
        self._link.send(fetch.peer, wire.Done(grant.claim, grant.put, ok))
        if not ok:
            self._fail(fetch, SizeMismatch(f"{fetch.key}: {len(grant.data)} bytes came of "
                                           f"{grant.size}"))
            return
        self._by_claim.pop(fetch.claim, None)
        if not fetch.peer.path:
            fetch.peer.path = "message"
            self._log.info("kvxfer gets what is small in messages: %s", fetch.peer)
        fetch.peer.nbytes += grant.size
        fetch.data = grant.data
        self._move(fetch, State.DONE)

    def _read(self, fetch: Fetch) -> None:
        """GRANTED: as soon as there is room, and the owner's pool is there."""
        grant, peer = fetch.grant, fetch.peer
        assert grant is not None and peer is not None and self.region is not None
        fetch.state = State.GRANTED
        try:
            if fetch.buffer is None:
                fetch.buffer = self._pool.alloc(grant.size)
            if not peer.up:
                return
            fetch.transfer = self._link.read(
                fetch, self.region, peer, fetch.buffer.offset, grant.offset, grant.size,
                tag=grant.put, payload=wire.pack_read(grant.put, grant.claim),
                label=_label(fetch.key), deadline=read_seconds(grant.size), require=self.require)
            fetch.state = State.READING
        except PoolTooSmall as err:
            self._link.send(peer, wire.Done(grant.claim, grant.put, False))
            self._fail(fetch, err)
        except (PoolFull, kvxfer.errors.TryAgain, kvxfer.errors.PeerUnreachable,
                kvxfer.errors.DaemonLost):
            pass  # get tries again while it waits; a loss is told by its event
        except Exception as err:
            self._link.send(peer, wire.Done(grant.claim, grant.put, False))
            self._fail(fetch, err)

    def _read_failed(self, fetch: Fetch, error: kvxfer.KvxferError) -> None:
        """The owner keeps its bytes. What a later try can mend is tried again."""
        self._log.warning("%s: READ from %s: %s", fetch.key, fetch.peer, error)
        if isinstance(error, (kvxfer.errors.DaemonLost, kvxfer.errors.PeerLost,
                              kvxfer.errors.Cancelled)):
            self._start_over(fetch, None)
        else:
            self._fail(fetch, error)

    def _start_over(self, fetch: Fetch, error: Optional[Exception]) -> None:
        if error is not None:
            self._fail(fetch, FetchError(f"the process that put {fetch.key} is gone: {error}"))
            return
        self._by_claim.pop(fetch.claim, None)
        self._release(fetch)
        fetch.peer = None
        fetch.grant = None
        self._move(fetch, State.NEW)

    def _release(self, fetch: Fetch) -> None:
        buffer, fetch.buffer = fetch.buffer, None
        if buffer is not None:
            buffer.release()

    def _remove(self, fetch: Fetch) -> None:
        if self._by_key.get(fetch.key) is fetch:
            del self._by_key[fetch.key]

    def _give_up(self, fetch: Fetch) -> None:
        """Of a READ that is under way nothing is known before its end: until then its key is
        taken, so that it is not claimed once more."""
        if fetch.state is State.READING:
            fetch.over = True
            if fetch.transfer is not None:
                _cancel(fetch.transfer)
            return
        self._remove(fetch)
        if fetch.state in (State.ASKED, State.WAITING) and fetch.peer is not None:
            self._link.send(fetch.peer, wire.Abandon(fetch.claim))
        elif fetch.state is State.GRANTED and fetch.peer is not None and fetch.grant:
            self._link.send(fetch.peer, wire.Done(fetch.claim, fetch.grant.put, False))
        self._fail(fetch, FetchError("given up"))


def _cancel(transfer: kvxfer.Transfer) -> None:
    try:
        transfer.cancel()
    except kvxfer.KvxferError:  # it has ended, or will with the daemon
        pass


def _label(key: str) -> str:
    """What ``kvxferctl transfers`` shows: the end of a long key tells more than its start."""
    text = key.encode("ascii", "replace").decode()
    return text if len(text) <= 64 else text[-64:]


def read_seconds(nbytes: int) -> float:
    """Time a READ may take: 30 s, and 5 s more for every 100 MB."""
    return 30.0 + 5.0 * (nbytes / 100e6)
