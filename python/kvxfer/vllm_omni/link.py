"""The line to the node's daemon: one client, its thread, and the other processes as peers.

A peer is another process's pool, found by its published name at the daemon of its node; a route
is what leads to one: an endpoint number ("zmq_port" of the package), which is published too, with
the pool's name as its note. Finding takes no thread: the answer is an event.

Thread: its own reads all events and calls the handler; ``send``, ``read``, ``route`` and ``peer``
may be called from any thread and do not block. The client's set-up calls are made by the link's
thread only (and by whoever opens and closes), so that nobody waits for one in the data path.
"""

import collections
import json
import logging
import threading
import time
from typing import Any, Callable, Deque, Dict, List, Optional, Protocol, Tuple

import kvxfer

from . import wire

__all__ = ["Handler", "Link", "Peer", "Route", "alias"]

_TICK_S = 0.2
_FIND_AGAIN_S = (0.02, 1.0)
_RECONNECT_S = (0.02, 1.0)
_UNUSED_S = 60.0
_DEAD_MAX = 1024
_MISSING_S = 10.0
_MISSING_AGAIN_S = 60.0
#: After these nothing of the peer's own transfers goes on: they are told after the fence.
_GONE = (kvxfer.Status.CLIENT_LOST, kvxfer.Status.PEER_LOST, kvxfer.Status.REGION_LOST,
         kvxfer.Status.STALE, kvxfer.Status.NOT_FOUND)


def alias(number: int) -> str:
    """The published name of an endpoint number."""
    return f"omni/{number}"


class Peer:
    """Another process's pool. Made by the link; attributes are for reading.

    Attributes:
        address: of its node's daemon; "": this node.
        name: of the pool, never used twice.
        up: whether transfers and messages may be given to ``import_``.
        seen: whether it has been found.
        lost: set once it is gone for good; the next ``Link.peer`` makes a new one.
        path: transport of the last transfer; "message" for bytes inside a message.
    """

    def __init__(self, address: str, name: str) -> None:
        self.address = address
        self.name = name
        self.import_: Optional[kvxfer.Import] = None
        self.up = False
        self.lost = False
        self.seen = False
        self.path = ""
        self.nbytes = 0
        self.queue: Deque[bytes] = collections.deque()

    def __repr__(self) -> str:
        return f"{self.name} at {self.address or 'this node'}"


class Route:
    """An endpoint number at a node, or directly a pool's name.

    Attributes:
        peer: where it leads, when known.
        error: why it leads nowhere, until the next try.
        dead: the process that published it has ended: it leads nowhere ever again.
    """

    def __init__(self, address: str, name: str, is_pool: bool) -> None:
        self.address = address
        self.name = name
        self.is_pool = is_pool
        self.peer: Optional[Peer] = None
        self.import_: Optional[kvxfer.Import] = None
        self.error: Optional[kvxfer.KvxferError] = None
        self.dead = False
        self.again = 0.0
        self.used = 0.0
        self.missing = 0.0
        self.pause = _FIND_AGAIN_S[0]

    def __repr__(self) -> str:
        return f"{self.name} at {self.address or 'this node'}"


class Handler(Protocol):
    """What the link tells. Called in its thread, without its lock."""

    def on_message(self, message: wire.Message) -> None: ...
    def on_arrival(self, event: kvxfer.Event) -> None: ...
    def on_read(self, what: Any, event: kvxfer.Event) -> None: ...
    def on_route(self, route: Route) -> None: ...
    def on_peer_up(self, peer: Peer) -> None: ...
    def on_peer_lost(self, peer: Peer, error: kvxfer.KvxferError, gone: bool) -> None: ...
    def on_daemon(self, up: bool) -> None: ...
    def on_tick(self, now: float) -> None: ...


class Link:
    """One client and its thread. ``start`` it when the handler is ready; ``close`` ends it."""

    def __init__(self, socket: Optional[str], name: str, log: logging.Logger,
                 handler: Handler) -> None:
        """Raises as kvxfer.Client."""
        self.client = kvxfer.Client(socket, name=name[:64])
        self.up = True
        self.address = self.client.address
        self._addresses = {"", self.address}
        self._log = log
        self._handler = handler
        self._lock = threading.RLock()
        self._peers: Dict[Tuple[str, str], Peer] = {}
        self._routes: Dict[Tuple[str, str], Route] = {}
        self._imports: Dict[kvxfer.Import, Any] = {}  # -> Peer or Route
        self._reads: Dict[int, Any] = {}
        self._old: List[kvxfer.Import] = []
        self._dead: Deque[str] = collections.deque(maxlen=_DEAD_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvxfer-omni", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Fences everything and ends the thread. Blocks: kvxfer.Client.close()."""
        self._stopping.set()
        self.up = False
        self.client.close()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    # ---- who is there

    def route(self, address: str, name: str, is_pool: bool) -> Route:
        """The route of that name at the daemon of that address (one of this node's own, also of
        before it restarted, and "": here), tried (again) when it is time. Does not block."""
        with self._lock:
            if address in self._addresses:
                address = ""
            route = self._routes.get((address, name))
            if route is None:
                route = self._routes[address, name] = Route(address, name, is_pool)
                route.dead = is_pool and name in self._dead
            route.used = now = time.monotonic()
            if route.peer is None and route.import_ is None and now >= route.again:
                self._try(route)
            return route

    def peer(self, address: str, name: str) -> Peer:
        """The pool of that name. A new one is looked for; messages wait for it meanwhile."""
        with self._lock:
            peer = self._peers.get((address, name))
            if peer is None:
                peer = self._peers[address, name] = Peer(address, name)
                self._find(peer)
            return peer

    def peers(self) -> List[Peer]:
        with self._lock:
            return list(self._peers.values())

    def _try(self, route: Route) -> None:
        route.error = None
        if route.is_pool:
            route.peer = self.peer(route.address, route.name)
        else:
            self._find(route)

    def _find(self, what: Any) -> None:
        """Lock held. Failures come as events, or are left to the next try."""
        if not self.up:
            return
        try:
            what.import_ = self.client.find(what.address, what.name)
            self._imports[what.import_] = what
        except kvxfer.KvxferError as err:
            self._log.debug("find %s: %s", what, err)

    # ---- data path

    def send(self, peer: Peer, message: wire.Message) -> None:
        """Posts a message, in order. To a peer that is lost: nothing, the handler is told of the
        loss. Does not block."""
        data = message.pack()
        with self._lock:
            if not peer.up:
                if not peer.lost:
                    peer.queue.append(data)
                return
            self._post(peer, data)

    def _post(self, peer: Peer, data: bytes) -> None:
        """Lock held, peer up."""
        assert peer.import_ is not None
        try:
            peer.import_.post(data)
        except kvxfer.errors.TryAgain:
            peer.up = False
            peer.queue.append(data)  # until the next tick
        except kvxfer.KvxferError as err:  # the loss comes as an event
            self._log.debug("post to %s: %s", peer, err)

    def read(self, what: Any, region: kvxfer.Region, peer: Peer, local: int, remote: int,
             nbytes: int, **options: Any) -> kvxfer.Transfer:
        """Submits a READ of the peer's pool; ``on_read(what, event)`` tells its end. Does not
        block. Raises KvxferError: nothing was submitted."""
        with self._lock:
            if peer.import_ is None or not peer.up:
                raise kvxfer.errors.PeerUnreachable(f"{peer} is not there")
            ops = kvxfer.Ops([local], [remote], nbytes)
            transfer = self.client.read(region, peer.import_, ops, **options)
            self._reads[transfer.id] = what
            return transfer

    # ---- the thread

    def _run(self) -> None:
        ticked = 0.0
        while not self._stopping.is_set():
            try:
                for event in self.client.wait(_TICK_S):
                    self._on_event(event)
            except kvxfer.errors.DaemonLost:
                self._reconnect()
            except kvxfer.errors.Closed:
                return
            except Exception:
                self._log.exception("kvxfer-omni: event lost")
            now = time.monotonic()
            if now >= ticked + _TICK_S:
                ticked = now
                self._safely(self._tick, now)

    def _safely(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except kvxfer.errors.Closed:
            pass
        except Exception:
            self._log.exception("kvxfer-omni: %s", call.__name__)

    def _tick(self, now: float) -> None:
        with self._lock:
            old, self._old = self._old, []
            for at, route in list(self._routes.items()):
                if route.peer is None and route.import_ is None and now > route.used + _UNUSED_S:
                    del self._routes[at]
            stuck = [p for p in self._peers.values() if p.queue and p.seen and not p.up]
            for peer in self._peers.values():
                if peer.import_ is None:
                    self._find(peer)
        for import_ in old:
            self._close_import(import_)
        for peer in stuck:
            self._flush(peer)
        self._handler.on_tick(now)

    def _close_import(self, import_: kvxfer.Import) -> None:
        try:
            import_.close()
        except kvxfer.errors.Deadline:
            with self._lock:
                self._old.append(import_)

    def _flush(self, peer: Peer) -> None:
        with self._lock:
            peer.up = peer.import_ is not None and not peer.lost
            while peer.up and peer.queue:
                self._post(peer, peer.queue.popleft())

    def _on_event(self, event: kvxfer.Event) -> None:
        type_ = event.type
        if type_ is kvxfer.EventType.MESSAGE:
            try:
                self._handler.on_message(wire.unpack(event.payload))
            except wire.WireError as err:
                self._log.error("%s", err)
        elif type_ is kvxfer.EventType.TERMINAL:
            with self._lock:
                what = self._reads.pop(event.transfer.id, None) if event.transfer else None
            if what is not None:
                self._handler.on_read(what, event)
        elif type_ is kvxfer.EventType.ARRIVAL:
            self._handler.on_arrival(event)
        elif type_ is kvxfer.EventType.IMPORT_UP:
            self._on_up(event)
        elif type_ is kvxfer.EventType.IMPORT_LOST:
            self._on_lost(event)
        elif type_ is kvxfer.EventType.DAEMON_LOST:
            self._on_daemon_lost()

    def _on_up(self, event: kvxfer.Event) -> None:
        with self._lock:
            what = self._imports.get(event.remote) if event.remote is not None else None
        if isinstance(what, Peer):
            with self._lock:
                what.seen = True
                for route in self._routes.values():
                    if route.peer is what:
                        route.pause = _FIND_AGAIN_S[0]
            self._flush(what)
            self._handler.on_peer_up(what)
        elif isinstance(what, Route):
            self._on_alias(what, event.payload)

    def _on_alias(self, route: Route, note: bytes) -> None:
        """The number is published: its note names the pool. The alias's import has served."""
        try:
            name = str(json.loads(note)["pool"])
        except (ValueError, KeyError, TypeError):
            error = kvxfer.errors.ProtocolError(
                f"{route} was published by another program: use another zmq_port")
            self._fail(route, error)
            return
        with self._lock:
            self._forget(route)
            route.pause = _FIND_AGAIN_S[0]
            route.missing = 0.0
            route.peer = self.peer(route.address, name)
        self._handler.on_route(route)

    def _fail(self, route: Route, error: kvxfer.KvxferError) -> None:
        now = time.monotonic()
        route.missing = route.missing or now
        if now > route.missing + _MISSING_S:
            route.missing = now + _MISSING_AGAIN_S
            self._log.warning("%s cannot be reached for %d s: %s. Does that stage run, is its "
                              "zmq_port the same, is sender_host its node?", route, _MISSING_S,
                              error)
        with self._lock:
            self._forget(route)
            route.error = error
            route.again = now + route.pause
            route.pause = min(2 * route.pause, _FIND_AGAIN_S[1])
        self._handler.on_route(route)

    def _forget(self, what: Any) -> None:
        """Lock held: its import is closed at the next tick."""
        import_, what.import_ = what.import_, None
        if import_ is not None:
            self._imports.pop(import_, None)
            self._old.append(import_)

    def _on_lost(self, event: kvxfer.Event) -> None:
        error = event.error or kvxfer.errors.PeerLost(event.text)
        with self._lock:
            what = self._imports.get(event.remote) if event.remote is not None else None
        if isinstance(what, Route):
            self._fail(what, error)
        elif isinstance(what, Peer):
            self._on_peer_lost(what, error)

    def _on_peer_lost(self, peer: Peer, error: kvxfer.KvxferError) -> None:
        with self._lock:
            was_up = peer.seen
            gone = not was_up or error.status in _GONE
            peer.up = peer.seen = False
            self._forget(peer)
            peer.queue.clear()
            if gone:
                peer.lost = True
                self._peers.pop((peer.address, peer.name), None)
                self._back_off(peer, error)
                if isinstance(error, kvxfer.errors.ClientLost):
                    self._dead.append(peer.name)
            else:  # it lives, but messages to it were lost: watch it anew
                self._find(peer)
        log = self._log.warning if was_up else self._log.debug
        log("%s is lost: %s", peer, error)
        self._handler.on_peer_lost(peer, error, gone)

    def _back_off(self, peer: Peer, error: kvxfer.KvxferError) -> None:
        """Lock held: routes that lead to a lost peer are tried again later, not at every get."""
        for route in self._routes.values():
            if route.peer is peer:
                route.peer = None
                route.error = error
                route.again = time.monotonic() + route.pause
                route.pause = min(2 * route.pause, _FIND_AGAIN_S[1])

    def _on_daemon_lost(self) -> None:
        self._log.warning("kvxferd is gone: what was put stays, gets wait, until it is back")
        with self._lock:
            self.up = False
            for peer in self._peers.values():
                peer.up = peer.seen = False
                peer.lost = True
                peer.queue.clear()
                self._forget(peer)
            self._peers.clear()
            for route in self._routes.values():
                self._forget(route)
                route.peer = None
                route.again = 0.0
        self._handler.on_daemon(False)

    def _reconnect(self) -> None:
        pause = _RECONNECT_S[0]
        while not self._stopping.is_set():
            try:
                self.client.reconnect()
                break
            except kvxfer.errors.Closed:
                return
            except kvxfer.KvxferError as err:
                self._log.debug("reconnect: %s", err)
            self._stopping.wait(pause)
            pause = min(2 * pause, _RECONNECT_S[1])
        if self._stopping.is_set():
            return
        with self._lock:
            self.address = self.client.address
            self._addresses.add(self.address)
            self.up = True
        self._log.info("kvxferd is back: the pool is registered again")
        self._handler.on_daemon(True)
