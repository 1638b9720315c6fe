"""The client: one connection of this process to the node's daemon.

Any thread may use a client: a lock makes its calls follow each other. A thread that sleeps in
``wait()`` does not hold it; one in a set-up call does, for at most the client's time-out.
"""

import json
import math
import os
import select
import threading
import time
import warnings
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Union

from . import aio, errors
from ._native import ffi, lib
from ._ready import ready
from .events import Event, EventType, Op
from .gpu import GpuMemory
from .layout import Layout
from .region import Import, Memory, Region, _key
from .transfer import Blocks, Ops, Transfer
from .wait import Naming, Wait

__all__ = ["Client", "Limits"]

_kvxpy_poll = lib.kvxpy_poll
_NONE: Sequence[Event] = ()
_ACCESS = {"": 0, "r": 1, "w": 2, "rw": 3}
_OPS = {int(op): op for op in Op}


class Limits(NamedTuple):
    """Limits of the daemon, told when the client was opened."""

    max_ops: int  #: explicit ops of one submit or append
    max_blocks: int  #: block ids of one list
    max_planes: int  #: planes of one layout
    max_payload_bytes: int
    max_transfers: int  #: unfinished transfers of one client


class Client:
    """Connects to the node's daemon.

    Args:
        socket: path of its socket ("@name": abstract). None: $KVXFER_SOCKET, else
            /run/kvxfer/kvxferd.sock, else $XDG_RUNTIME_DIR/kvxferd.sock.
        name: shown by kvxferctl; at most 64 bytes. None: the program's name.
        timeout: seconds that a set-up call may block, in steps of 1 ms; at most 3600.

    Raises NotFound (no such socket: does kvxferd run?), NoDaemon, AccessDenied, VersionMismatch,
    Quota, Deadline, Invalid.

    Close it, or use it as a context manager. After fork() the child gets Forked from every call;
    the parent's client is not affected.
    """

    def __init__(self, socket: Optional[str] = None, *, name: Optional[str] = None,
                 timeout: float = 10.0) -> None:
        self._c = ffi.NULL
        options = ffi.new("struct kvxfer_client_options *")
        texts = [ffi.new("char[]", os.fsencode(text)) if text is not None else ffi.NULL
                 for text in (socket, name)]
        options.struct_bytes = ffi.sizeof("struct kvxfer_client_options")
        options.socket_path, options.name = texts
        options.timeout_ms = _milliseconds(timeout, "timeout", 3600)
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
        self._sleepers = _Sleepers(self._fd)
        self._transfers: Dict[int, Transfer] = {}
        self._regions: Dict[int, Region] = {}
        self._imports: Dict[int, Import] = {}
        self._backlog: Dict[int, Event] = {}
        self._n_events = 0
        self._listeners: List[Callable[[], None]] = []
        self._readers: Dict[Any, "aio.Reader"] = {}
        _clients.add(self)

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

    def __enter__(self) -> "Client":
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

    # ---- memory

    def register(self, memory: Memory, *, layout: Optional[Layout] = None, access: str = "",
                 name: Optional[str] = None, publish: Optional[str] = None,
                 note: bytes = b"") -> Region:
        """Registers memory with the daemon. Set-up call: blocks (without the GIL).

        Args:
            layout: its planes, which block lists name. None: explicit ops only.
            access: what importers may do: "", "r", "w", "rw".
            name: for people; at most 64 bytes.
            publish: the name under which clients of the tenant, here and on other nodes, find it
                (``find()``): 1..128 printable ASCII characters, none of them blank; needs access.
                It is free again when the region is closed.
            note: with publish: at most 4096 bytes for who finds it.

        Raises Quota, Invalid (a plane leaves the memory), Exists (the name is taken on this node),
        AccessDenied (publish without access), BadFd, NoMemory, Deadline, DaemonLost.
        """
        if access not in _ACCESS:
            raise errors.Invalid(f'access {access!r}: must be "", "r", "w" or "rw"')
        options = ffi.new("struct kvxfer_region_options *")
        keep: List[Any] = []
        options.struct_bytes = ffi.sizeof("struct kvxfer_region_options")
        options.access = _ACCESS[access]
        if name is not None:
            keep.append(ffi.new("char[]", name.encode()))
            options.name = keep[-1]
        if layout is not None:
            options.layout = layout._fill(keep)
        if publish is not None:
            keep.append(ffi.new("char[]", publish.encode()))
            options.publish = keep[-1]
        if note:
            keep.append(ffi.from_buffer(note))
            options.note, options.note_bytes = keep[-1], len(note)
        out = ffi.new("struct kvxfer_region **")
        with self._lock:
            self._check(self._register_c(memory, options, out))
            region = Region(self, out[0], memory, layout, name or "")
            self._regions[_key(out[0])] = region
        return region

    def _register_c(self, memory: Memory, options: Any, out: Any) -> int:
        if not isinstance(memory, GpuMemory):
            return int(lib.kvxfer_region_register(self._open_c(), memory._fd, memory._fd_offset,
                                                  memory.nbytes, options, out))
        if memory._in_use:
            options.flags = lib.KVXFER_REGION_IN_USE
        segments = memory._segments()
        return int(lib.kvxfer_region_register_gpu(self._open_c(), segments, len(segments), options,
                                                  out))

    def alloc(self, nbytes: int, *, layout: Optional[Layout] = None, access: str = "",
              name: Optional[str] = None, hugepages: bool = False, publish: Optional[str] = None,
              note: bytes = b"") -> Region:
        """``register()`` of a new ``Memory(nbytes)``."""
        memory = Memory(nbytes, hugepages=hugepages, name=name or "kvxfer")
        return self.register(memory, layout=layout, access=access, name=name, publish=publish,
                             note=note)

    def open_import(self, descriptor: bytes, *, compare: Optional[Region] = None) -> Import:
        """Makes another client's region usable as the remote side, and connects to its node.
        Set-up call: blocks (without the GIL).

        Args:
            descriptor: of ``Region.export()``.
            compare: refuse the import unless its layout has the planes (count, block_bytes) of
                this region's.

        Raises Invalid, Stale, NotFound, AccessDenied, LayoutMismatch (says where),
        PeerUnreachable, Quota, Deadline, DaemonLost.
        """
        options = ffi.new("struct kvxfer_import_options *")
        options.struct_bytes = ffi.sizeof("struct kvxfer_import_options")
        out = ffi.new("struct kvxfer_import **")
        with self._lock:
            if compare is not None:
                options.compare = compare._open_c()
            self._check(lib.kvxfer_import_open(self._open_c(), ffi.from_buffer(descriptor),
                                               len(descriptor), options, out))
            import_ = Import(self, out[0])
            self._imports[_key(out[0])] = import_
        return import_

    def find(self, address: Optional[str], name: str, *,
             compare: Optional[Region] = None) -> Import:
        """As ``open_import()``, by the name that the region's owner has published it under; does
        not block. One event tells what came of it: IMPORT_UP (``payload``: the note), or
        IMPORT_LOST: NotFound (nobody has published the name: try again later), AccessDenied,
        LayoutMismatch, PeerUnreachable, Deadline (no answer within 8 s), Quota. Close the import
        after that; it can also be closed before. Until IMPORT_UP, submit and post raise TryAgain.
        After ``reconnect()`` such imports are IMPORT_LOST (DaemonLost): find them again.

        Args:
            address: where the other node's daemon listens for peers: "host:port", "host" (default
                port). None, "" or ``Client.address``: this node.

        Raises Invalid, TryAgain (poll, and find again), DaemonLost: no event follows then.
        """
        options = ffi.new("struct kvxfer_import_options *")
        options.struct_bytes = ffi.sizeof("struct kvxfer_import_options")
        out = ffi.new("struct kvxfer_import **")
        with self._lock:
            if compare is not None:
                options.compare = compare._open_c()
            self._check(lib.kvxfer_import_find(
                self._open_c(), ffi.new("char[]", (address or "").encode()),
                ffi.new("char[]", name.encode()), options, out))
            import_ = Import(self, out[0], up=False)
            self._imports[_key(out[0])] = import_
        return import_

    @property
    def address(self) -> str:
        """Where this node's daemon listens for other nodes, "host:port" as they are to name it in
        ``find()``; "" when it does not. Asked once: the first use blocks as ``query()``."""
        if self._address is None:
            self._address = str(self.query("status")["peer_address"])
        return self._address

    # ---- transfers

    def submit(self, op: Op, region: Region, remote: Import, what: Union[Blocks, Ops, None] = None,
               *, tag: int = 0, payload: bytes = b"", deadline: Optional[float] = None,
               require: Optional[str] = None, streaming: bool = False,
               label: Optional[str] = None, wait: Optional[Wait] = None) -> Transfer:
        """Submits a transfer. Does not block.

        Args:
            what: Blocks or Ops; None only when streaming. Source ranges may overlap, destination
                ranges must not.
            tag: 0..2**64-1; comes back in the events on both sides.
            payload: at most 4096 bytes for the remote engine, after the data.
            deadline: seconds from here to its end, in steps of 1 ms. None: the daemon's (30 s).
            require: the only transport allowed ("copy", "fabric", "verbs"). None: any.
            streaming: appends follow, ended by ``Transfer.seal()``.
            label: the engine's name for it (its request id), at most 64 bytes; shown by
                ``kvxferctl transfers`` on both nodes.
            wait: no byte of ``what`` moves before that is over.

        Raises Invalid, TooBig, TryAgain (poll, and submit again), DaemonLost, Unsupported (a wait,
        and the daemon is too old for it): nothing was submitted then. What only the daemon can
        refuse (range, layout, quota) is told by the terminal event.
        """
        keep: List[Any] = []
        t = ffi.new("struct kvxfer_transfer *")
        try:
            t.struct_bytes = _TRANSFER_BYTES
            t.op = op
            t.tag = tag
            if isinstance(what, Blocks):
                t.blocks = what._fill(region, keep)
            elif what is not None:
                t.ops = what._fill(region, keep)
        except OverflowError as err:
            raise errors.Invalid(str(err)) from None
        if payload:
            keep.append(ffi.from_buffer(payload))
            t.payload = keep[-1]
            t.payload_bytes = len(payload)
        if deadline is not None:
            t.deadline_ms = _milliseconds(deadline, "deadline", 4e6)
        if require is not None:
            keep.append(ffi.new("char[]", require.encode()))
            t.require = keep[-1]
        if label is not None:
            keep.append(ffi.new("char[]", label.encode()))
            t.label = keep[-1]
        t.streaming = streaming
        id_ = ffi.new("uint64_t *")
        with self._lock:
            t.region = region._open_c()
            t.import_ = remote._open_c()
            naming = Naming()
            try:
                if wait is not None:
                    t.wait = wait._fill(keep, naming)
                rc = lib.kvxfer_transfer_submit(self._open_c(), t, id_)
                if rc < 0:
                    self._check(rc)
                transfer = Transfer(self, id_[0], op, region, remote, tag, streaming)
                self._transfers[transfer.id] = transfer
                if wait is not None:
                    wait._named.append(transfer)
            finally:
                naming.done = True
        return transfer

    def write(self, region: Region, remote: Import, what: Union[Blocks, Ops, None] = None,
              **options: Any) -> Transfer:
        """``submit(Op.WRITE, ...)``: local region -> import (prefill pushes)."""
        return self.submit(Op.WRITE, region, remote, what, **options)

    def read(self, region: Region, remote: Import, what: Union[Blocks, Ops, None] = None,
             **options: Any) -> Transfer:
        """``submit(Op.READ, ...)``: import -> local region (decode pulls)."""
        return self.submit(Op.READ, region, remote, what, **options)

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
        self._sleepers = _Sleepers(self._fd)
        self._listeners = []
        self._readers = {}


class _Sleepers:
    """Threads that sleep until a client has read events. One of them polls the client's fd, the
    others wait for it; whoever reads events tells them all."""

    def __init__(self, fd: int) -> None:
        self.generation = 0
        self._fd = fd
        self._cond = threading.Condition()
        self._polling = False
        self._wake = (-1, -1)

    def sleep(self, seen: int, left: Optional[float]) -> None:
        """Returns when events may have been read since generation was ``seen``, when there may be
        some to read, or after ``left`` seconds; also without a reason."""
        with self._cond:
            if self.generation != seen:
                return
            if self._polling:
                self._cond.wait(left)
                return
            self._polling = True
            if self._wake[0] < 0:
                self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            poller.register(self._wake[0], select.POLLIN)
            poller.poll(None if left is None else min(math.ceil(left * 1000), 2**31 - 1))
        finally:
            with self._cond:
                self._polling = False
                if self.generation != seen:
                    _drain(self._wake[0])
                self._cond.notify_all()

    def told(self) -> None:
        with self._cond:
            self.generation += 1
            if self._polling:
                try:
                    os.write(self._wake[1], b"x")
                except BlockingIOError:  # full: it wakes
                    pass
            self._cond.notify_all()

    def __del__(self) -> None:
        for fd in self._wake:
            if fd >= 0:
                os.close(fd)


def _drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        pass


_TRANSFER_BYTES = ffi.sizeof("struct kvxfer_transfer")
_clients: "weakref.WeakSet[Client]" = weakref.WeakSet()


def _milliseconds(seconds: float, what: str, most: float) -> int:
    if not 0 < seconds <= most:
        raise errors.Invalid(f"{what}: {seconds} s, must be > 0 and <= {most:g}")
    return math.ceil(seconds * 1000)


def _clients_after_fork() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_clients_after_fork)
