"""What the daemon waits for before it touches a byte of a list, so that the engine need not."""

from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, List, Optional, Tuple

from . import errors
from ._native import ffi, lib

if TYPE_CHECKING:
    from .region import Region

__all__ = ["EventPool", "Naming", "Wait"]

_BYTES = int(lib.KVXFER_WAIT_EVENT_BYTES)
_STRUCT_BYTES = ffi.sizeof("struct kvxfer_wait")
_POOL_LOOKS = 8  # at events that were recorded long ago, each time that one is needed


class Naming:
    """Somebody who names a Wait, as a transfer does until it is done."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False


class Wait:
    """A condition for the bytes of one list: ``Client.submit(..., wait=)`` or
    ``Transfer.append(..., wait=)``. With WRITE, until the engine's kernels have written the blocks;
    with READ, until they have used what is overwritten. The engine's thread goes on at once.

    Made by :meth:`event` or :meth:`flag`; may be used for any number of lists. It is not waited for
    longer than the transfer's deadline; one that cannot come any more ends the transfer
    (DeviceLost, Invalid: no such event, MemoryFault, RegionLost, Quota: too many lists wait). A
    daemon that is too old for it: Unsupported, from submit and append.
    """

    __slots__ = ("_handle", "_source", "_region", "_offset", "_value", "_reached", "_spent",
                 "_named", "__weakref__")

    def __init__(self) -> None:
        self._handle = b""
        self._source: Any = None
        self._region: "Optional[Region]" = None
        self._offset = 0
        self._value = 0
        self._reached = False
        self._spent = False  # its event was reached, and stands for something else since
        #: Transfers, or submissions under way (anything with ``done``), that name it.
        self._named: List[Any] = []

    @classmethod
    def event(cls, event: Any, *, region: "Optional[Region]" = None,
              handle: Optional[bytes] = None) -> "Wait":
        """Until an event of the engine's GPU is reached.

        Args:
            event: recorded already, and made for several processes:
                ``torch.cuda.Event(interprocess=True)``, or another object with ``ipc_handle() ->
                bytes``; or these bytes (64, as cudaIpcGetEventHandle() and hipIpcGetEventHandle()
                give them). It is held; an event of which only bytes are given must live until the
                transfer has ended. Recorded again before that, it stands for the later record, also
                for lists that were to wait for the earlier one, and the daemon may not yet have
                seen that one reached: record it again only after the end of the last transfer
                that names it.
            region: any of the client's in memory of the event's device. None: the transfer's own.
            handle: the bytes, where they are known already.

        Raises Invalid where the event cannot be shared.
        """
        self = cls()
        if isinstance(event, (bytes, bytearray)):
            handle = bytes(event)
        else:
            self._source = event
            if handle is None:
                try:
                    handle = bytes(event.ipc_handle())
                except (RuntimeError, AttributeError) as err:
                    raise errors.Invalid(
                        f"the event cannot be shared with the daemon ({err}): make it with "
                        "interprocess=True and without timing") from None
        if len(handle) != _BYTES:
            raise errors.Invalid(f"an event's handle has {_BYTES} bytes, these are {len(handle)}")
        self._handle = handle
        self._region = region
        return self

    @classmethod
    def flag(cls, region: "Region", offset: int, value: int) -> "Wait":
        """Until the 8 bytes at ``offset`` (a multiple of 8) of an own region of host memory, a
        little-endian unsigned number, are ``value`` or more."""
        self = cls()
        self._region = region
        self._offset = offset
        self._value = value
        return self

    @property
    def is_event(self) -> bool:
        return bool(self._handle)

    def query(self) -> bool:
        """Whether it is known to be over: the list could as well go without it. False also where
        this process cannot tell (an event of which only the bytes are known). Raises what the
        event's own ``query()`` raises."""
        if not self._reached:
            if self._source is not None:
                self._reached = bool(self._source.query())
            elif not self._handle and self._region is not None:
                at = memoryview(self._region.memory.buffer)[self._offset:self._offset + 8]
                self._reached = int.from_bytes(at, "little") >= self._value
        return self._reached

    def on(self, region: "Region") -> "Wait":
        """The same, with a region in memory of the event's device where none was named."""
        if self._region is not None:
            return self
        same = Wait()
        same._handle, same._source, same._region = self._handle, self, region
        same._named = self._named
        return same

    def _over(self) -> bool:
        """The event was reached, and is to be recorded for something else. False: it is not to be,
        as a transfer that names it has not ended. First it is marked, then looked: who names it
        meanwhile does so in the other order (``_fill()``)."""
        self._spent = True
        if not all(one.done for one in self._named):
            self._spent = False
            return False
        self._named.clear()
        self._reached = True
        self._source = None
        return True

    def _is_spent(self) -> bool:
        return self._spent or (isinstance(self._source, Wait) and self._source._spent)

    def _fill(self, keep: List[Any], by: Any) -> Any:
        """The client's lock is held.

        Args:
            by: whose list waits: its ``done`` says when the daemon needs the event no more.
        """
        if by not in self._named[-1:]:
            self._named.append(by)
        if self._is_spent():  # there is nothing left to wait for
            return ffi.NULL
        out = ffi.new("struct kvxfer_wait *")
        out.struct_bytes = _STRUCT_BYTES
        if self._handle:
            out.kind = lib.KVXFER_WAIT_EVENT
            ffi.memmove(out.event, self._handle, _BYTES)
        else:
            out.kind = lib.KVXFER_WAIT_FLAG
            out.offset = self._offset
            out.value = self._value
        if self._region is not None:
            out.region = self._region._open_c()
        keep.append(out)
        return out

    def __repr__(self) -> str:
        what = "event" if self._handle else f"flag at {self._offset} >= {self._value}"
        return f"<Wait for {what}{', over' if self._reached else ''}>"


class EventPool:
    """Events that are recorded again and again, each only when it was reached and the transfers
    that name it have ended (and were read to have: ``Transfer.done``). The daemon keeps those that
    it knows open, and none is destroyed while somebody may ask for it. One thread.

    Args:
        make: makes an event: ``lambda: torch.cuda.Event(interprocess=True)``.
        most: of them. The daemon keeps 256 of a client open.
    """

    def __init__(self, make: Callable[[], Any], most: int = 256) -> None:
        self._make = make
        self._most = most
        #: (event, the last Wait for it), about the longest recorded first.
        self._events: "Deque[Tuple[Any, Wait]]" = deque()

    @classmethod
    def of_torch(cls, device: str) -> "Optional[EventPool]":
        """Of torch's events for that type of device; None: there are none that can be shared."""
        if device.partition(":")[0] != "cuda":  # which is also what torch calls ROCm's
            return None
        import torch

        make: Any = torch.cuda.Event
        return cls(lambda: make(interprocess=True))

    def record(self, *stream: Any) -> Optional[Wait]:
        """A Wait for what the stream (none: the current one) has been given so far. None: all
        events are still to be reached, or named by transfers that have not ended. Raises Invalid where events cannot be shared, and what
        ``record()`` raises."""
        event, handle = self._reached()
        if event is None:
            if len(self._events) >= self._most:
                return None
            event = self._make()
        event.record(*stream)
        wait = Wait.event(event, handle=handle)
        self._events.append((event, wait))
        return wait

    def _reached(self) -> Tuple[Any, Optional[bytes]]:
        for _ in range(min(len(self._events), _POOL_LOOKS)):
            event, wait = self._events[0]
            if all(one.done for one in wait._named) and event.query() and wait._over():
                self._events.popleft()
                return event, wait._handle
            self._events.rotate(-1)
        return None, None
