"""A client's connection to the node's daemon: its life, and the events that it tells. Any thread,
under the client's lock (see ``client``)."""

import json
import math
import os
import threading
import time
import warnings
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, TypeVar

from . import aio, errors
from ._native import ffi, lib
from ._ready import ready
from ._sleepers import Sleepers
from .events import Event, EventType, Op
from .region import Import, Region
from .transfer import Transfer

__all__ = ["Connection", "Limits", "milliseconds"]

_kvxpy_poll = lib.kvxpy_poll
_NONE: Sequence[Event] = ()
_OPS = {int(op): op for op in Op}
_Self = TypeVar("_Self", bound="Connection")


class Limits(NamedTuple):
    """Limits of the daemon, told when the client was opened."""

    max_ops: int  #: explicit ops of one submit or append
    max_blocks: int  #: block ids of one list
    max_planes: int  #: planes of one layout
    max_payload_bytes: int
    max_transfers: int  #: unfinished transfers of one client


class Connection:
    """Life and events of a :class:`kvxfer.Client`, which adds what can be asked over it, and puts
    what came of that into the tables here: regions and imports by the library's addresses of them,
    transfers by their ids."""

    def __init__(self, socket: Optional[str] = None, *, name: Optional[str] = None,
                 timeout: float = 10.0) -> None:
        self._c = ffi.NULL
        options = ffi.new("struct kvxfer_client_options *")
        texts = [ffi.new("char[]", os.fsencode(text)) if text is not None else ffi.NULL
                 for text in (socket, name)]
        options.struct_bytes = ffi.sizeof("struct kvxfer_client_options")
        options.socket_path, options.name = texts
        options.timeout_ms = milliseconds(timeout, "timeout", 3600)
        out = ffi.new("struct kvxfer_client **")
        rc = lib.kvxfer_client_open(options, out)
        if rc < 0:
            raise errors.from_errno(rc, errors.string(lib.kvxfer_open_error()))
        self._c = out[0]
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._address: Optional[str] = None
        self._events = ffi.gc(ffi.new("struct kvxpy_events *"), lib.kvxpy_events_free)
        self._fd = int(lib.kvxfer_client_fd(self._c))
        self._ask = self._fd  # asked first by poll; -1: dispatch itself has an error to tell
        self._sleepers = Sleepers(self._fd)
        self._transfers: Dict[int, Transfer] = {}
        self._regions: Dict[int, Region] = {}
        self._imports: Dict[int, Import] = {}
        self._backlog: Dict[int, Event] = {}
        self._n_events = 0
        self._listeners: List[Callable[[], None]] = []
        self._readers: Dict[Any, "aio.Reader"] = {}
        _connections.add(self)

    # ---- life

    @property
    def closed(self) -> bool:
        return bool(self._c == ffi.NULL)

    def close(self) -> None:
        """Cancels what is outstanding and releases every region and import. Blocks (without the
        GIL) until the daemon has fenced the client's memory, at most the time-out. Transfers whose
        end was not read raise Closed from then on. Does nothing when closed. Where something of the
        client is awaited, call it in that loop's thread."""
        with self._lock:
            if self.closed:
                return
            c, self._c, self._ask = self._c, ffi.NULL, -1
            for region in self._regions.values():
                region._c = ffi.NULL
            for import_ in self._imports.values():
                import_._c = ffi.NULL
            self._regions.clear()
            self._imports.clear()
            if os.getpid() == self._pid:
                for reader in self._readers.values():
                    reader.stop()
                self._readers.clear()
            lib.kvxfer_client_close(c)
            lost = errors.Closed("the client was closed before the transfer's end was read")
            for transfer in self._transfers.values():
                transfer._finish(None, lost)
            self._transfers.clear()
            self._told()

    def __del__(self) -> None:
        if getattr(self, "_c", ffi.NULL) == ffi.NULL or not hasattr(self, "_readers"):
            return
        try:
            if os.getpid() == self._pid:
                warnings.warn("a kvxfer.Client was not closed", ResourceWarning, stacklevel=2)
        finally:
            self.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reconnect(self) -> None:
        """After DAEMON_LOST: connects again and registers every region anew; imports of other
        nodes are made anew, those that cannot be end with IMPORT_LOST. Descriptors exported before
        are void. Transfers are never retried. Blocks (without the GIL); after a failure it can be
        called again. Raises as ``Client()``, and KvxferError (EALREADY) while the daemon is there,
        Busy while the events of its loss have not been read."""
        with self._lock:
            self._check(lib.kvxfer_client_reconnect(self._open_c()))
            self._ask = self._fd
            self._address = None

    @property
    def limits(self) -> Limits:
        out = ffi.new("struct kvxfer_limits *")
        with self._lock:
            lib.kvxfer_client_limits(self._open_c(), out)
        return Limits(out.max_ops, out.max_blocks, out.max_planes, out.max_payload_bytes,
                      out.max_transfers)

    def query(self, verb: str, arg: Optional[str] = None) -> Dict[str, Any]:
        """Asks the daemon about itself: "status", "clients", "regions", "transfers", "peers",
        "lanes", "stats", "devices", "ping", ... as kvxferctl does. Raises Unsupported (unknown
        verb), AccessDenied, PeerUnreachable, Deadline."""
        out = ffi.new("char **")
        with self._lock:
            self._check(lib.kvxfer_client_query(
                self._open_c(), verb.encode(), ffi.NULL if arg is None else arg.encode(), out))
        try:
            answer: Dict[str, Any] = json.loads(errors.string(out[0]))
        finally:
            lib.free(out[0])
        return answer

    @property
    def address(self) -> str:
        """Where this node's daemon listens for other nodes, "host:port" as they are to name it in
        ``find()``; "" when it does not. Asked once: the first use blocks as ``query()``."""
        if self._address is None:
            self._address = str(self.query("status")["peer_address"])
        return self._address

    # ---- events

    def fileno(self) -> int:
        """The one file descriptor to poll for reading: ``poll()`` has something to do. Constant
        for the client's life; do nothing else with it."""
        return self._fd

    def poll(self) -> Sequence[Event]:
        """The events that are there now, in order; empty when there are none. Never blocks, costs
        one system call and keeps the GIL when there are none: made to be called at every step of an
        engine. While another thread is in a call of this client, empty. An event that ``wait`` or
        ``await`` of its transfer has taken is not given again. Raises DaemonLost once the loss has
        been told, until ``reconnect()``."""
        if not ready(self._ask) and not self._backlog or not self._lock.acquire(False):
            return _NONE
        try:
            n = _kvxpy_poll(self._c, self._events)
            if n:
                self._take(n)
            return self._take_backlog() if self._backlog else _NONE
        finally:
            self._lock.release()

    def wait(self, timeout: Optional[float] = None) -> Sequence[Event]:
        """Blocks (without the GIL) until there is an event, at most ``timeout`` seconds; then as
        ``poll()``. Empty when the time is over."""
        until = None if timeout is None else time.monotonic() + timeout
        self._wait_for(lambda: bool(self._backlog), until)
        with self._lock:
            return self._take_backlog()

    def _take_backlog(self) -> Sequence[Event]:
        events = list(self._backlog.values())
        self._backlog.clear()
        return events

    def _pump(self) -> None:
        """Reads what is there: transfers get their ends, the backlog all events."""
        with self._lock:
            n = _kvxpy_poll(self._c, self._events)
            if n:
                self._take(n)

    def _wait_for(self, over: Callable[[], bool], until: Optional[float]) -> bool:
        while True:
            seen = self._sleepers.generation
            if not over():
                self._pump()
            if over():
                return True
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._sleepers.sleep(seen, left)

    def _take(self, n: int) -> None:
        """Lock held, after a poll that said n."""
        events = self._events
        try:
            for i in range(events.n):
                event = self._event(events.items[i])
                self._n_events += 1
                self._backlog[self._n_events] = event
                if event.type is EventType.TERMINAL and event.transfer is not None:
                    event.transfer._key = self._n_events
                    event.transfer._finish(event)
                elif event.type is EventType.DAEMON_LOST:
                    self._ask = -1
        finally:
            lib.kvxpy_events_clear(events)
            self._told()
        if events.lost:
            raise errors.NoMemory("no memory for an event, which is lost: close the client")
        if n < 0:
            self._open_c()
            self._check(n)

    def _event(self, e: Any) -> Event:
        event = Event(EventType(e.type))
        event.status = e.status
        if e.text:
            event.text = errors.string(e.text)
        if e.status:
            event.error = errors.from_status(e.status, event.text, e.scope, e.vendor_code)
        event.tag = e.tag
        event.op = _OPS.get(e.op)
        event.bytes = e.bytes
        event.transport = errors.string(e.transport)
        if e.transfer:
            event.transfer = self._transfers.pop(e.transfer, None)
            event.submit_ns, event.first_ns = e.submit_ns, e.first_ns
            event.last_ns, event.end_ns = e.last_ns, e.end_ns
        if e.region:
            event.region = self._regions.get(e.region)
        if e.import_:
            event.remote = self._imports.get(e.import_)
            if event.remote is not None:
                event.remote._up = event.type is EventType.IMPORT_UP
        if e.payload:
            event.payload = bytes(ffi.buffer(e.payload, e.payload_bytes))
        return event

    def _told(self) -> None:
        self._sleepers.told()
        for call in list(self._listeners):
            call()

    # ---- inside

    def _open_c(self) -> Any:
        if self._c == ffi.NULL:
            raise errors.Closed("the client is closed")
        return self._c

    def _check(self, rc: int) -> int:
        """Raises for -errno. Lock held: the text is that of the last call."""
        if rc >= 0:
            return rc
        text = errors.string(lib.kvxfer_client_error(self._c))
        if os.getpid() != self._pid:
            raise errors.Forked(text)
        raise errors.from_errno(rc, text)

    def _after_fork(self) -> None:
        """In a child, which may have been forked while another thread held the lock."""
        self._lock = threading.RLock()
        self._ask = -1
        self._sleepers = Sleepers(self._fd)
        self._listeners = []
        self._readers = {}


_connections: "weakref.WeakSet[Connection]" = weakref.WeakSet()


def milliseconds(seconds: float, what: str, most: float) -> int:
    if not 0 < seconds <= most:
        raise errors.Invalid(f"{what}: {seconds} s, must be > 0 and <= {most:g}")
    return math.ceil(seconds * 1000)


def _after_fork() -> None:
    for connection in list(_connections):
        connection._after_fork()


os.register_at_fork(after_in_child=_after_fork)
