"""Transfers: what is to move (Blocks, Ops, Slice) and one transfer's life."""

import time
from typing import TYPE_CHECKING, Any, Callable, Generator, List, NamedTuple, Optional, Union

from . import _arrays, aio, errors
from ._native import ffi, lib
from .events import Event, Op

if TYPE_CHECKING:
    from .client import Client
    from .region import Import, Region
    from .wait import Wait

__all__ = ["Blocks", "Ops", "Slice", "Transfer"]


class Slice(NamedTuple):
    """Of every block only ``count`` pieces of ``bytes``: piece j is [offset + j * stride, + bytes)
    of the block, on each side. Where two sides split the heads differently. All in bytes."""

    local_offset: int
    remote_offset: int
    bytes: int
    count: int = 1  # type: ignore[assignment]
    local_stride: int = 0
    remote_stride: int = 0

    @classmethod
    def heads(cls, *, block_tokens: int, head_bytes: int, n_heads: int, local_heads: int,
              remote_heads: int, local_first: int = 0, remote_first: int = 0,
              heads_first: bool = False) -> "Slice":
        """``n_heads`` KV heads of every token of a block, where a block holds ``local_heads`` here
        and ``remote_heads`` there.

        Blocks are [block_tokens][heads][head_bytes] (NHD: one piece per token) or, with
        ``heads_first``, [heads][block_tokens][head_bytes] (HND: one piece in all). ``head_bytes``:
        head_dim * itemsize, of K or of V. Raises Invalid where the heads are not there.
        """
        if not (0 <= local_first <= local_heads - n_heads
                and 0 <= remote_first <= remote_heads - n_heads and n_heads > 0):
            raise errors.Invalid(
                f"heads {local_first}..+{n_heads} of {local_heads} here, "
                f"{remote_first}..+{n_heads} of {remote_heads} there")
        if heads_first:
            row = block_tokens * head_bytes
            return cls(local_first * row, remote_first * row, n_heads * row)
        return cls(local_first * head_bytes, remote_first * head_bytes, n_heads * head_bytes,
                   block_tokens, local_heads * head_bytes, remote_heads * head_bytes)


class Blocks:
    """Whole blocks (or a slice of each): block ``local[j]`` of each plane here against block
    ``remote[j]`` of the plane there.

    Args:
        local, remote: block ids, of one length: one-dimensional numpy arrays or CPU torch tensors
            of integers, or sequences of int. int32 and uint32 without gaps are not copied here.
            They are read by ``submit`` and ``append`` only.
        planes: a range of the local region's planes (``Layout.group()`` gives one), or the index
            of one plane. None: all planes of the local region's layout.
        remote_plane: the first plane there. None: the same as here.
        slice: None: whole blocks, whose block_bytes must be equal on both sides.
    """

    __slots__ = ("local", "remote", "planes", "remote_plane", "slice")

    def __init__(self, local: Any, remote: Any, *, planes: Union[range, int, None] = None,
                 remote_plane: Optional[int] = None, slice: Optional[Slice] = None) -> None:
        if isinstance(planes, int):
            planes = range(planes, planes + 1)
        if planes is not None and planes.step != 1:
            raise errors.Invalid("planes must be a range without steps")
        self.local = local
        self.remote = remote
        self.planes = planes
        self.remote_plane = remote_plane
        self.slice = slice

    def _fill(self, region: "Region", keep: List[Any]) -> Any:
        planes = self.planes
        if planes is None:
            planes = range(len(region.layout.planes) if region.layout else 0)
        out = ffi.new("struct kvxfer_blocks *")
        local, n = _arrays.ids(self.local, "local block ids")
        remote, n_remote = _arrays.ids(self.remote, "remote block ids")
        if n != n_remote:
            raise errors.Invalid(f"{n} local block ids, but {n_remote} remote ones")
        out.local_plane = planes.start
        out.remote_plane = planes.start if self.remote_plane is None else self.remote_plane
        out.n_planes = len(planes)
        out.n_blocks = n
        out.local_blocks = local
        out.remote_blocks = remote
        if self.slice is not None:
            piece = ffi.new("struct kvxfer_slice *", tuple(self.slice))
            out.slice = piece
            keep.append(piece)
        keep += (out, local, remote)
        return out


class Ops:
    """Explicit ops: op i moves ``lens[i]`` bytes between ``local_offsets[i]`` of the region and
    ``remote_offsets[i]`` of the import.

    Args:
        local_offsets, remote_offsets: bytes, of one length: one-dimensional arrays of integers
            (int64 and uint64 without gaps are not copied here), or sequences of int.
        lens: bytes, each > 0: an array of the same length, or one int for all.
    """

    __slots__ = ("local_offsets", "remote_offsets", "lens")

    def __init__(self, local_offsets: Any, remote_offsets: Any, lens: Any) -> None:
        self.local_offsets = local_offsets
        self.remote_offsets = remote_offsets
        self.lens = lens

    def _fill(self, region: "Region", keep: List[Any]) -> Any:
        out = ffi.new("struct kvxfer_ops *")
        local, n = _arrays.offsets(self.local_offsets, "local_offsets")
        remote, n_remote = _arrays.offsets(self.remote_offsets, "remote_offsets")
        n_lens = n
        if isinstance(self.lens, int):
            out.len = self.lens
        else:
            lens, n_lens = _arrays.offsets(self.lens, "lens")
            out.lens = lens
            keep.append(lens)
        if n != n_remote or n != n_lens:
            raise errors.Invalid(f"{n} local offsets, {n_remote} remote offsets, {n_lens} lengths")
        out.n_ops = n
        out.local_offsets = local
        out.remote_offsets = remote
        keep += (out, local, remote)
        return out


class Transfer:
    """One transfer, made by ``Client.submit``, ``write`` or ``read``. It ends exactly once; after
    that no byte of it lands in the destination or is read from the source. Until then its blocks
    must not be reused.

    ``await transfer`` and ``wait()`` give the terminal :class:`Event`, or raise the exception of
    its status. As a context manager: leaving the block seals a streaming transfer, an exception
    cancels it; neither waits.

    Attributes:
        client, region, remote, op, tag: as given at submission.
        id: the library's number for it, never used again by this client.
    """

    __slots__ = ("client", "region", "remote", "op", "tag", "id", "_event", "_error", "_key",
                 "_open", "_on_done", "__weakref__")

    def __init__(self, client: "Client", id: int, op: Op, region: "Region", remote: "Import",
                 tag: int, streaming: bool) -> None:
        self.client = client
        self.id = id
        self.op = op
        self.region = region
        self.remote = remote
        self.tag = tag
        self._event: Optional[Event] = None
        self._error: Optional[errors.KvxferError] = None
        self._key = 0
        self._open = streaming
        self._on_done: List[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether its end has been read (by poll, wait or asyncio). No system call."""
        return self._event is not None or self._error is not None

    @property
    def event(self) -> Optional[Event]:
        """The terminal event once it is done; None before, and when the client was closed."""
        return self._event

    def append(self, what: Union[Blocks, Ops], *, wait: "Optional[Wait]" = None) -> None:
        """Adds to a streaming transfer, e.g. the planes of the layer just computed. Does not block.

        Args:
            wait: none of its bytes moves before that is over. Lists go in the order of their
                appends: what is appended behind this one waits, too.

        Raises NotFound (not streaming, sealed, or ended: ``wait()`` says why), Invalid, TooBig,
        TryAgain, DaemonLost; Unsupported: a wait, and the daemon is too old for it.
        """
        keep: List[Any] = []
        try:
            list_ = what._fill(self.region, keep)
        except OverflowError as err:
            raise errors.Invalid(str(err)) from None
        client = self.client
        blocks, ops = (list_, ffi.NULL) if isinstance(what, Blocks) else (ffi.NULL, list_)
        with client._lock:
            until = ffi.NULL if wait is None else wait._fill(keep, self)
            client._check(lib.kvxfer_transfer_append_after(client._open_c(), self.id, blocks, ops,
                                                           until))

    def seal(self, payload: bytes = b"") -> None:
        """Ends the appending. A payload (at most 4096 bytes), when not empty, replaces that of the
        submission. Does not block. Raises NotFound, TooBig, TryAgain, DaemonLost."""
        client = self.client
        with client._lock:
            client._check(lib.kvxfer_transfer_seal(client._open_c(), self.id,
                                                   ffi.from_buffer(payload), len(payload)))
        self._open = False

    def cancel(self) -> bool:
        """Asks for an early end; the terminal event (Cancelled, or what it had reached before)
        comes after the fence. Does not block. False: it had ended already. Raises DaemonLost."""
        client = self.client
        with client._lock:
            if self.done:
                return False
            try:
                client._check(lib.kvxfer_transfer_cancel(client._open_c(), self.id))
            except errors.NotFound:
                return False
        self._open = False
        return True

    def result(self) -> Event:
        """The terminal event of a transfer that is done. Raises its exception when it failed, and
        Busy while it is not done."""
        if not self.done:
            raise errors.Busy("the transfer has not ended")
        self.client._backlog.pop(self._key, None)
        error = self._error or (self._event.error if self._event else None)
        if error is not None:
            raise error
        assert self._event is not None
        return self._event

    def wait(self, timeout: Optional[float] = None) -> Event:
        """Blocks (without the GIL) until it is done, at most ``timeout`` seconds; then as
        ``result()``. Events of others read meanwhile are kept for ``Client.poll()``. Raises the
        builtin TimeoutError when the time is over (the transfer goes on)."""
        until = None if timeout is None else time.monotonic() + timeout
        if not self.client._wait_for(lambda: self.done, until):
            raise TimeoutError(f"transfer {self.id} has not ended within {timeout} s")
        return self.result()

    def __await__(self) -> Generator[Any, None, Event]:
        return aio.finished(self).__await__()

    def _finish(self, event: Optional[Event], error: Optional[errors.KvxferError] = None) -> None:
        """Client's lock held."""
        self._event = event
        self._error = error
        self._open = False
        for call in self._on_done:
            call()
        self._on_done.clear()

    def __enter__(self) -> "Transfer":
        return self

    def __exit__(self, exc_type: object, exc: object, trace: object) -> None:
        if not self._open:
            return
        if exc_type is not None:
            self.cancel()
            return
        self.seal()

    def __repr__(self) -> str:
        state = "done" if self.done else "open" if self._open else "under way"
        return f"<Transfer {self.id} {self.op.name} tag {self.tag}, {state}>"
