"""Memory, regions (memory registered with the daemon) and imports (regions of other clients)."""

import errno
import math
import mmap
import os
from typing import TYPE_CHECKING, Any, Optional, Sequence, Tuple, Union

from . import _arrays, errors
from ._native import ffi, lib
from .layout import Layout, Plane

if TYPE_CHECKING:
    import numpy
    import torch

    from .client import Client
    from .gpu import GpuMemory

__all__ = ["Memory", "Region", "Import"]

_HUGE_BYTES = 2 << 20
_STEP_BYTES = 64 << 20
_MFD_NOEXEC_SEAL = 8
_MADV_POPULATE_WRITE = 23

Shape = Union[int, Sequence[int]]


class Memory:
    """Shared memory (a memfd) that a region can be made of. ``numpy()`` and ``torch()`` make
    tensors of it without copies; make them first, then a layout from them
    (:mod:`kvxfer.layout`), then ``client.register(memory, layout=...)``.

    It lives as long as anything refers to it: every array, tensor and memoryview made from it
    does, so that none can outlive its memory, whatever is closed first. Closing a region ends its
    registration, never the memory.

    Args:
        nbytes: > 0; rounded up to the page size (2 MiB with ``hugepages``).
        hugepages: back with huge pages of 2 MiB.
        name: for people (/proc/PID/maps).

    Raises Invalid; NoMemory: pages are charged now, not at the first touch.
    """

    def __init__(self, nbytes: int, *, hugepages: bool = False, name: str = "kvxfer") -> None:
        if nbytes <= 0:
            raise errors.Invalid(f"{nbytes} bytes: must be > 0")
        page = _HUGE_BYTES if hugepages else mmap.PAGESIZE
        nbytes = -(-nbytes // page) * page
        try:
            fd = _memfd(name, hugepages)
            try:
                _make_pages(fd, nbytes)
                self._map = mmap.mmap(fd, nbytes)
            except BaseException:
                os.close(fd)
                raise
        except OSError as err:
            hint = ": too few free huge pages (vm.nr_hugepages)?" if hugepages else ""
            raise errors.NoMemory(f"{nbytes} bytes of shared memory: {err}{hint}") from None
        if not hugepages:
            _want_huge(self._map)
        self._set(fd, 0, nbytes)

    @classmethod
    def from_fd(cls, fd: int, nbytes: int, offset: int = 0) -> "Memory":
        """Part of a memfd of the caller's (MFD_ALLOW_SEALING), which is duplicated and mapped.
        ``offset``: a multiple of the page size. Raises Invalid, BadFd (when registered)."""
        self = cls.__new__(cls)
        own = os.dup(fd)
        try:
            self._map = mmap.mmap(own, nbytes, offset=offset)
        except (OSError, ValueError) as err:
            os.close(own)
            raise errors.Invalid(f"fd {fd}, offset {offset}, {nbytes} bytes: {err}") from None
        self._set(own, offset, nbytes)
        _populate(self._map)
        return self

    @staticmethod
    def of_gpu(*pieces: Any, in_use: bool = False) -> "GpuMemory":
        """GPU memory as it is: tensors (torch, or with ``__cuda_array_interface__``), or
        ``(address, nbytes)``, all of one device; in the region they follow each other without gaps.
        The layer tensors of a KV cache are ``Memory.of_gpu(*kv_caches)``. The memory must have been
        allocated with cudaMalloc or hipMalloc, as PyTorch does without expandable segments.

        ``in_use``: kernels may be using the memory now. Else registering it writes some bytes of
        it for a moment, to prove that the daemon sees the right memory, and puts them back.

        Tensors are held, addresses are the caller's to keep; free the memory only after the region
        is closed. Raises Invalid."""
        from . import gpu

        return gpu.of_pieces(pieces, in_use)

    def _view(self, tensor: Any) -> _arrays.View:
        return _arrays.view(tensor)

    def _set(self, fd: int, offset: int, nbytes: int) -> None:
        self._fd = fd
        self._fd_offset = offset
        self._nbytes = nbytes
        self._address = int(ffi.cast("uintptr_t", ffi.from_buffer(self._map)))

    def __del__(self) -> None:
        fd = getattr(self, "_fd", -1)
        if fd >= 0:
            os.close(fd)

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self._nbytes

    @property
    def address(self) -> int:
        """Where it is mapped in this process; keep the Memory, or a view of it, while using it."""
        return self._address

    @property
    def buffer(self) -> memoryview:
        """All of it, as bytes that can be written. Holds the memory."""
        return memoryview(self._map)

    def numpy(self, dtype: Any = "uint8", shape: Optional[Shape] = None,
              offset: int = 0) -> "numpy.ndarray[Any, Any]":
        """An array over the memory, without a copy. ``offset``: bytes from its start; ``shape``
        None: one dimension, as many items as fit. Raises Invalid where it does not fit."""
        import numpy

        dtype = numpy.dtype(dtype)
        if shape is None:
            shape = max(self.nbytes - offset, 0) // dtype.itemsize
        self._check_fit(_count(shape) * dtype.itemsize, offset)
        return numpy.ndarray(shape, dtype, self._map, offset)

    def torch(self, dtype: "torch.dtype", shape: Optional[Shape] = None,
              offset: int = 0) -> "torch.Tensor":
        """As ``numpy()``: a CPU tensor over the memory, without a copy."""
        import torch

        item_bytes = torch.empty(0, dtype=dtype).element_size()
        if shape is None:
            shape = max(self.nbytes - offset, 0) // item_bytes
        dims = [shape] if isinstance(shape, int) else list(shape)
        count = _count(shape)
        self._check_fit(count * item_bytes, offset)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(dims)

    def offset_of(self, tensor: Any) -> int:
        """Bytes from the memory's start to a numpy array or torch tensor that lies in it wholly.
        Raises Invalid where it does not; Unsupported for a tensor of a GPU."""
        return self._place(self._view(tensor))

    def _place(self, seen: _arrays.View) -> int:
        low, high = _arrays.extent(seen)
        offset = seen.address - self.address
        if offset + low < 0 or offset + high > self.nbytes or 0 in seen.shape:
            raise errors.Invalid(
                f"the tensor (shape {seen.shape}) does not lie in this memory: make it with "
                "numpy() or torch() of the kvxfer.Memory or Region")
        return offset

    def _check_fit(self, nbytes: int, offset: int) -> None:
        if offset < 0 or nbytes <= 0 or nbytes > self.nbytes - offset:
            raise errors.Invalid(f"{nbytes} bytes at {offset} of {self.nbytes}")


def _count(shape: Shape) -> int:
    dims = (shape,) if isinstance(shape, int) else shape
    return -1 if any(n < 0 for n in dims) else math.prod(dims)


def _memfd(name: str, hugepages: bool) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if hugepages:
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    try:
        return os.memfd_create(name[:200], flags | _MFD_NOEXEC_SEAL)
    except OSError:  # before Linux 6.3
        return os.memfd_create(name[:200], flags)


def _make_pages(fd: int, nbytes: int) -> None:
    there = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    if nbytes > there:  # known before the system has to kill somebody for it
        raise OSError(errno.ENOMEM, f"this machine has {there} bytes")
    os.ftruncate(fd, nbytes)
    for at in range(0, nbytes, _STEP_BYTES):
        os.posix_fallocate(fd, at, min(_STEP_BYTES, nbytes - at))


def _populate(map_: mmap.mmap) -> None:
    """The daemon takes no holes, and pages that were never touched look like some."""
    try:
        map_.madvise(_MADV_POPULATE_WRITE)
    except OSError:  # before Linux 5.14: the caller's to touch
        pass


def _want_huge(map_: mmap.mmap) -> None:
    try:
        map_.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, AttributeError):
        pass


class Region:
    """Memory that this client registered (``Client.register``, ``Client.alloc``). Close it, or use
    it as a context manager, when no transfer is to use it any more.

    Attributes:
        client, memory, layout, name: as given.
    """

    def __init__(self, client: "Client", c: Any, memory: Memory, layout: Optional[Layout],
                 name: str) -> None:
        self.client = client
        self.memory = memory
        self.layout = layout
        self.name = name
        self._c = c

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.memory.nbytes

    @property
    def closed(self) -> bool:
        return bool(self._c == ffi.NULL)

    def numpy(self, dtype: Any = "uint8", shape: Optional[Shape] = None,
              offset: int = 0) -> "numpy.ndarray[Any, Any]":
        """``Memory.numpy``. Stays valid after the region is closed."""
        return self.memory.numpy(dtype, shape, offset)

    def torch(self, dtype: "torch.dtype", shape: Optional[Shape] = None,
              offset: int = 0) -> "torch.Tensor":
        """``Memory.torch``. Stays valid after the region is closed."""
        return self.memory.torch(dtype, shape, offset)

    def offset_of(self, tensor: Any) -> int:
        """``Memory.offset_of``."""
        return self.memory.offset_of(tensor)

    def export(self) -> bytes:
        """The descriptor: at most 512 bytes with which other clients, here or on other nodes, can
        import the region; who has them, has the access named at registration. Void once the region
        is closed or the daemon restarts. Raises AccessDenied (no access bits), DaemonLost."""
        out = ffi.new("uint8_t[]", lib.KVXFER_DESCRIPTOR_MAX)
        client = self.client
        with client._lock:
            n = client._check(lib.kvxfer_region_export(self._open_c(), out, len(out)))
        return bytes(ffi.buffer(out, n))

    def close(self) -> None:
        """Ends the registration. Transfers that use it end first (RegionLost). Blocks (without
        the GIL) until no DMA to or from it is possible any more: the daemon's fence bound, 2 s by
        default. Does nothing when closed. Raises Deadline: not known to be fenced; the region
        stays, close it again."""
        client = self.client
        with client._lock:
            if self.closed:
                return
            rc = lib.kvxfer_region_unregister(self._c)
            try:
                client._check(rc)
            except errors.DaemonLost:  # and with it all DMA: the region is gone
                pass
            client._regions.pop(_key(self._c), None)
            self._c = ffi.NULL

    def _open_c(self) -> Any:
        if self.closed:
            raise errors.Closed(f"region {self.name!r} is closed")
        return self._c

    def __enter__(self) -> "Region":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Region {self.name!r}, {self.nbytes} bytes{', closed' if self.closed else ''}>"


class Import:
    """Another client's region, here or on another node (``Client.open_import``,
    ``Client.find``)."""

    def __init__(self, client: "Client", c: Any, up: bool = True) -> None:
        self.client = client
        self._c = c
        self._up = up

    @property
    def up(self) -> bool:
        """Whether it can be used: opened, or its IMPORT_UP was read; and no IMPORT_LOST, and not
        closed."""
        return self._up and not self.closed

    @property
    def closed(self) -> bool:
        return bool(self._c == ffi.NULL)

    @property
    def nbytes(self) -> int:
        """Length of the remote region in bytes."""
        with self.client._lock:
            return int(lib.kvxfer_import_bytes(self._open_c()))

    @property
    def planes(self) -> Tuple[Plane, ...]:
        """Planes of the remote layout; () when it has none."""
        out = ffi.new("struct kvxfer_plane *")
        planes = []
        with self.client._lock:
            c = self._open_c()
            for i in range(lib.kvxfer_import_planes(c)):
                self.client._check(lib.kvxfer_import_plane(c, i, out))
                planes.append(Plane(errors.string(out.name), out.offset, out.block_stride,
                                    out.block_bytes, out.n_blocks))
        return tuple(planes)

    @property
    def transport(self) -> str:
        """The transport that a transfer would take, as known when the import was made; what one
        took is in its event."""
        with self.client._lock:
            return errors.string(lib.kvxfer_import_transport(self._open_c()))

    def send(self, data: bytes) -> None:
        """Sends a message of 1..4096 bytes to the client that owns the region: an event MESSAGE
        there. Reliable, in order. Blocks (without the GIL) until its daemon has queued it. Raises
        TooBig; ClientLost: the receiver is gone; Quota: it does not read its events; PeerLost;
        Deadline: it may or may not have arrived."""
        client = self.client
        with client._lock:
            client._check(lib.kvxfer_message_send(self._open_c(), ffi.from_buffer(data),
                                                  len(data)))

    def post(self, data: bytes) -> None:
        """As ``send()``, but does not block: it waits in the daemon while the receiver has too many
        events unread. One that cannot be delivered (also after 20 s of that, or when too many bytes
        wait) ends the import (its transfers are cancelled, then IMPORT_LOST). It arrives after the
        ARRIVAL of every transfer through this import whose end was read before, and in order with
        other messages. Raises TooBig, Invalid (empty), ClientLost (the import was lost), TryAgain
        (not up yet, or the daemon does not read: poll, and post again), DaemonLost: nothing was
        posted then."""
        client = self.client
        with client._lock:
            client._check(lib.kvxfer_message_post(self._open_c(), ffi.from_buffer(data),
                                                  len(data)))

    def close(self) -> None:
        """Releases the import. Transfers that use it end first (Cancelled). Blocks and raises as
        ``Region.close()``. Does nothing when closed."""
        client = self.client
        with client._lock:
            if self.closed:
                return
            rc = lib.kvxfer_import_close(self._c)
            try:
                client._check(rc)
            except errors.DaemonLost:
                pass
            client._imports.pop(_key(self._c), None)
            self._c = ffi.NULL

    def _open_c(self) -> Any:
        if self.closed:
            raise errors.Closed("the import is closed")
        return self._c

    def __enter__(self) -> "Import":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _key(c: Any) -> int:
    return int(ffi.cast("uintptr_t", c))
