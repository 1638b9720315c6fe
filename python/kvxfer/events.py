"""What a client is told (``Client.poll()``, ``Client.wait()``)."""

import enum
from typing import TYPE_CHECKING, Optional

from . import errors

if TYPE_CHECKING:
    from .region import Import, Region
    from .transfer import Transfer

__all__ = ["Event", "EventType", "Op"]


class EventType(enum.IntEnum):
    TERMINAL = 1  #: a transfer of this client has ended; exactly one per transfer
    ARRIVAL = 2  #: another client's transfer to or from a region of this client has ended
    MESSAGE = 3  #: a message of another client to the owner of ``region``
    IMPORT_LOST = 4  #: the region behind ``remote`` is gone: close the import
    REGION_LOST = 5  #: ``region`` cannot be used any more: close it
    DRAINING = 6  #: the daemon takes no new transfers
    DAEMON_LOST = 7  #: the daemon is gone, all transfers have ended: ``Client.reconnect()``
    IMPORT_UP = 8  #: ``remote``, of ``Client.find()``, can be used; ``payload``: the note


class Op(enum.IntEnum):
    READ = 1  #: import -> local region (decode pulls)
    WRITE = 2  #: local region -> import (prefill pushes)


class Event:
    """One event. Attributes that its type does not name are None, 0 or empty.

    Attributes:
        type: :class:`EventType`.
        status: int, a :class:`kvxfer.Status` where this version knows it; 0: OK.
        error: None when ``status`` is OK, else the exception that stands for it.
        text: the cause of a failure, for people.
        transfer: TERMINAL: the :class:`kvxfer.Transfer`.
        tag: TERMINAL, ARRIVAL: the submitter's tag (0..2**64-1).
        op: TERMINAL, ARRIVAL: the :class:`Op` as the submitter named it, else None.
        bytes: TERMINAL, ARRIVAL: bytes moved.
        transport: TERMINAL, ARRIVAL: "copy", "fabric", "verbs"; "" when nothing was posted.
        region: ARRIVAL, MESSAGE, REGION_LOST: this client's :class:`kvxfer.Region`; None when it
            was closed.
        remote: IMPORT_LOST, IMPORT_UP: the :class:`kvxfer.Import`.
        payload: ARRIVAL, MESSAGE, IMPORT_UP: bytes, at most 4096.
        submit_ns, first_ns, last_ns, end_ns: TERMINAL: CLOCK_MONOTONIC when the daemon read the
            request, gave the first op to a transport, saw the last one complete (0: none of
            them), and when the transfer ended.
    """

    __slots__ = ("type", "status", "error", "text", "transfer", "tag", "op", "bytes", "transport",
                 "region", "remote", "payload", "submit_ns", "first_ns", "last_ns", "end_ns")

    def __init__(self, type: EventType) -> None:
        self.type = type
        self.status: int = errors.Status.OK
        self.error: Optional[errors.KvxferError] = None
        self.text = ""
        self.transfer: Optional["Transfer"] = None
        self.tag = 0
        self.op: Optional[Op] = None
        self.bytes = 0
        self.transport = ""
        self.region: Optional["Region"] = None
        self.remote: Optional["Import"] = None
        self.payload = b""
        self.submit_ns = self.first_ns = self.last_ns = self.end_ns = 0

    @property
    def ok(self) -> bool:
        """Whether the status is OK: for a transfer, that all bytes are visible."""
        return self.error is None

    def __repr__(self) -> str:
        what = f" {self.error}" if self.error else ""
        return f"<Event {self.type.name} tag {self.tag}, {self.bytes} bytes{what}>"
