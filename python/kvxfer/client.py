"""The client: one connection of this process to the node's daemon.

Any thread may use a client: a lock makes its calls follow each other. A thread that sleeps in
``wait()`` does not hold it; one in a set-up call does, for at most the client's time-out.
"""

from typing import Any, List, Optional, Union

from . import errors
from ._connection import Connection, Limits, milliseconds
from ._native import ffi, lib
from .events import Op
from .gpu import GpuMemory
from .layout import Layout
from .region import Import, Memory, Region, _key
from .transfer import Blocks, Ops, Transfer
from .wait import Naming, Wait

__all__ = ["Client", "Limits"]

_TRANSFER_BYTES = ffi.sizeof("struct kvxfer_transfer")
_ACCESS = {"": 0, "r": 1, "w": 2, "rw": 3}


class Client(Connection):
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
            require: the only transport allowed ("copy", "gpu", "fabric", "verbs"). None: any.
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
            t.deadline_ms = milliseconds(deadline, "deadline", 4e6)
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
