"""How things fail: one exception class per status of the C library.

Every failure is a :class:`KvxferError`. A call that fails raises it; a transfer that ends badly
raises it from ``wait()``, ``result()`` and ``await``; an event carries it as ``event.error``.
"""

import enum
import errno as _errno
from typing import Dict, Optional, Type

from ._native import ffi, lib

__all__ = [
    "Status", "Scope", "KvxferError", "Cancelled", "Deadline", "Invalid", "Quota", "TooBig",
    "NotFound", "AccessDenied", "OutOfRange", "LayoutMismatch", "Unsupported", "NoPath",
    "RegionLost", "PeerLost", "PeerUnreachable", "TransportError", "ClientLost", "DaemonLost",
    "Draining", "ProtocolError", "NoMemory", "Busy", "MemoryFault", "DeviceLost", "Exists",
    "VersionMismatch", "Internal", "Stale", "BadFd", "TryAgain", "NoDaemon", "Forked", "Closed",
]


class Status(enum.IntEnum):
    """How a transfer, or anything else that is told by an event, ended. As in client.h."""

    OK = 0
    CANCELLED = 1
    DEADLINE = 2
    INVALID = 3
    QUOTA = 4
    TOO_BIG = 5
    NOT_FOUND = 6
    ACCESS = 7
    RANGE = 8
    LAYOUT = 9
    UNSUPPORTED = 10
    NO_PATH = 11
    REGION_LOST = 12
    PEER_LOST = 13
    PEER_UNREACHABLE = 14
    TRANSPORT = 15
    CLIENT_LOST = 16
    DAEMON_LOST = 17
    DRAINING = 18
    PROTOCOL = 19
    NO_MEMORY = 20
    BUSY = 21
    MEMORY_FAULT = 22
    DEVICE_LOST = 23
    EXISTS = 24
    VERSION = 25
    INTERNAL = 26
    STALE = 27
    BAD_FD = 28


class Scope(enum.IntEnum):
    """What a failure damaged: what must be made anew before trying again."""

    OP = 0
    TRANSFER = 1
    PEER = 2
    DEVICE = 3
    DAEMON = 4


class KvxferError(Exception):
    """Base of all failures.

    Attributes:
        status: the :class:`Status`; None for a failure of this process alone (see the classes at
            the end of this module) and for a status that this version does not know.
        errno: the positive errno of the status or of the failed call.
        scope: the :class:`Scope` of a failure told by an event; None for a failed call.
        vendor_code: the transport's own error code; 0: none.
        text: the cause in words, as the daemon or the library gives it.
        retryable: whether the same request may succeed later (``kvxfer_status_retryable``).
    """

    default_status: Optional[Status] = None
    default_errno: int = _errno.ENOTRECOVERABLE

    def __init__(self, text: str, *, errno: Optional[int] = None, scope: Optional[Scope] = None,
                 vendor_code: int = 0) -> None:
        super().__init__(text)
        self.text = text
        self.status = self.default_status
        self.errno = self.default_errno if errno is None else errno
        self.scope = scope
        self.vendor_code = vendor_code

    @property
    def retryable(self) -> bool:
        return self.status is not None and bool(lib.kvxfer_status_retryable(int(self.status)))

    def __str__(self) -> str:
        name = self.status.name if self.status is not None else type(self).__name__
        code = f" (vendor code {self.vendor_code})" if self.vendor_code else ""
        return f"{name}: {self.text}{code}"


class Cancelled(KvxferError):
    """By ``Transfer.cancel()`` or the closing of the client that submitted it."""


class Deadline(KvxferError):
    """The deadline of a transfer, or the time-out of a set-up call, has passed."""


class Invalid(KvxferError):
    """Arguments are wrong, or belong to another client."""


class Quota(KvxferError):
    """A configured limit of the daemon is reached."""


class TooBig(KvxferError):
    """More ops, blocks or bytes than one request may have (``Client.limits``)."""


class NotFound(KvxferError):
    """No such socket, region or transfer: it is gone, or never was."""


class AccessDenied(KvxferError):
    """The region was not exported for this, or the token or permission is wrong."""


class OutOfRange(KvxferError):
    """An op leaves the region; nothing was moved."""


class LayoutMismatch(KvxferError):
    """The two layouts do not match; the text names the plane."""


class Unsupported(KvxferError):
    """This daemon, device or version cannot do it."""


class NoPath(KvxferError):
    """The required transport does not join the two sides."""


class RegionLost(KvxferError):
    """A region of the transfer was unregistered."""


class PeerLost(KvxferError):
    """The other node was lost under the transfer."""


class PeerUnreachable(KvxferError):
    """The other node cannot be reached."""


class TransportError(KvxferError):
    """The transport failed: see ``vendor_code`` and ``text``."""


class ClientLost(KvxferError):
    """The other engine is gone."""


class DaemonLost(KvxferError):
    """The daemon is gone, and with it every DMA: read the events, then ``Client.reconnect()``."""


class Draining(KvxferError):
    """The daemon takes no new transfers."""


class ProtocolError(KvxferError):
    """The two sides do not understand each other's frames."""


class NoMemory(KvxferError):
    """Out of memory, here or in the daemon."""


class Busy(KvxferError):
    """In use: the call can be repeated."""


class MemoryFault(KvxferError):
    """A region's pages could not be touched."""


class DeviceLost(KvxferError):
    """The device of a transport or region failed."""


class Exists(KvxferError):
    """It is there already."""


class VersionMismatch(KvxferError):
    """No common protocol version."""


class Internal(KvxferError):
    """A defect: please report the text."""


class Stale(KvxferError):
    """A descriptor of an earlier start of its daemon: ask its owner for a new one."""


class BadFd(KvxferError):
    """Not a memfd that can be sealed."""


class TryAgain(KvxferError):
    """The daemon does not read its requests: poll, and submit again. Nothing was submitted."""

    default_errno = _errno.EAGAIN


class NoDaemon(KvxferError):
    """Nobody listens on the socket."""

    default_errno = _errno.ECONNREFUSED


class Forked(KvxferError):
    """The client belongs to the process that opened it, not to its forked child."""

    default_errno = _errno.EOWNERDEAD


class Closed(KvxferError):
    """The object, or its client, was closed in this process.

    From a transfer: its client was closed before the terminal event was read. How the transfer
    ended is not known here.
    """

    default_errno = _errno.EBADF


_BY_STATUS: Dict[int, Type[KvxferError]] = {
    Status.CANCELLED: Cancelled, Status.DEADLINE: Deadline, Status.INVALID: Invalid,
    Status.QUOTA: Quota, Status.TOO_BIG: TooBig, Status.NOT_FOUND: NotFound,
    Status.ACCESS: AccessDenied, Status.RANGE: OutOfRange, Status.LAYOUT: LayoutMismatch,
    Status.UNSUPPORTED: Unsupported, Status.NO_PATH: NoPath, Status.REGION_LOST: RegionLost,
    Status.PEER_LOST: PeerLost, Status.PEER_UNREACHABLE: PeerUnreachable,
    Status.TRANSPORT: TransportError, Status.CLIENT_LOST: ClientLost,
    Status.DAEMON_LOST: DaemonLost, Status.DRAINING: Draining, Status.PROTOCOL: ProtocolError,
    Status.NO_MEMORY: NoMemory, Status.BUSY: Busy, Status.MEMORY_FAULT: MemoryFault,
    Status.DEVICE_LOST: DeviceLost, Status.EXISTS: Exists, Status.VERSION: VersionMismatch,
    Status.INTERNAL: Internal, Status.STALE: Stale, Status.BAD_FD: BadFd,
}
_BY_ERRNO: Dict[int, Type[KvxferError]] = {TryAgain.default_errno: TryAgain,
                                           NoDaemon.default_errno: NoDaemon}

for _status, _cls in _BY_STATUS.items():
    _cls.default_status = Status(_status)
    _cls.default_errno = -int(lib.kvxfer_status_errno(int(_status)))
    _BY_ERRNO[_cls.default_errno] = _cls


def from_status(status: int, text: str, scope: int, vendor_code: int) -> KvxferError:
    """The exception for a status that is not OK, unknown ones included."""
    try:
        known_scope: Optional[Scope] = Scope(scope)
    except ValueError:
        known_scope = None
    cls = _BY_STATUS.get(status, KvxferError)
    errno = -int(lib.kvxfer_status_errno(status))
    return cls(text or string(lib.kvxfer_status_text(status)), errno=errno, scope=known_scope,
               vendor_code=vendor_code)


def from_errno(neg_errno: int, text: str) -> KvxferError:
    """The exception for a call that returned -errno."""
    return _BY_ERRNO.get(-neg_errno, KvxferError)(text, errno=-neg_errno)


def string(chars: object) -> str:
    """A C string; never fails on bytes that are not UTF-8."""
    return bytes(ffi.string(chars)).decode("utf-8", "replace")
