"""What ranks say to each other: a small header in JSON, and block ids behind it. One message is one
or more frames of at most 4096 bytes. Pure; whatever comes in is checked.

    frame:   magic "kvp1" | u64 sender | u32 number | u16 index | u16 count | bytes
    message: u8 kind | u8 0 | u16 header bytes | header (JSON) | u32 block ids, list after list
"""

import json
import struct
from array import array
from typing import Any, List, Mapping, NamedTuple, Sequence, Tuple

from .. import _arrays
from .._native import ffi
from ..errors import Invalid, ProtocolError

__all__ = ["CANCEL", "CLAIM", "FAILED", "GRANT", "Message", "READY", "RELEASE", "REVOKE",
           "copy_ids", "frames", "head_of", "no_ids", "pack", "unpack", "unpack_frame"]

FRAME_MAX = 4096
MESSAGE_MAX = 16 << 20

#: Destination to source.
READY = 1  #: WRITE: asks for blocks, says where to
CLAIM = 2  #: READ: asks for blocks
CANCEL = 3  #: does not want them any more: FAILED is the answer when nothing can land
RELEASE = 4  #: READ: has stopped reading, without success
#: Source to destination.
FAILED = 5  #: will not come; nothing lands any more
GRANT = 6  #: READ: the blocks to read
REVOKE = 7  #: READ: stop reading; RELEASE is the answer
NAMES = {READY: "READY", CLAIM: "CLAIM", CANCEL: "CANCEL", RELEASE: "RELEASE", FAILED: "FAILED",
         GRANT: "GRANT", REVOKE: "REVOKE"}

_FRAME = struct.Struct("<4sQIHH")
_HEAD = struct.Struct("<BBH")
_MAGIC = b"kvp1"
_ROOM = FRAME_MAX - _FRAME.size
_EMPTY = memoryview(b"").cast("I")


class Message(NamedTuple):
    kind: int
    fields: Mapping[str, Any]
    ids: Tuple["memoryview", ...]  #: lists of block ids
    n_head: int  #: bytes of the fields


def no_ids() -> "memoryview":
    return _EMPTY


def copy_ids(ids: Any, what: str) -> "memoryview":
    """Block ids of any kind as uint32 of their own. Raises Invalid."""
    if len(ids) == 0:
        return _EMPTY
    if isinstance(ids, list):  # as most engines have them
        try:
            return memoryview(array("I", ids).tobytes()).cast("I")
        except (OverflowError, TypeError) as err:
            raise Invalid(f"{what}: {err}") from None
    pointer, n = _arrays.ids(ids, what)
    return memoryview(bytes(ffi.buffer(ffi.cast("char *", pointer), 4 * n))).cast("I")


def pack(kind: int, fields: Mapping[str, Any], ids: Sequence["memoryview"] = ()) -> bytes:
    """Raises Invalid where it is too long."""
    if ids:
        fields = {**fields, "n": [len(one) for one in ids]}
    head = json.dumps(fields, separators=(",", ":")).encode()
    if len(head) > 0xffff:
        raise Invalid(f"a message with {len(head)} bytes of fields")
    data = b"".join([_HEAD.pack(kind, 0, len(head)), head, *ids])
    if len(data) > MESSAGE_MAX:
        raise Invalid(f"a message of {len(data)} bytes, at most {MESSAGE_MAX}")
    return data


def unpack(data: bytes) -> Message:
    """Raises ProtocolError."""
    try:
        kind, _, n_head = _HEAD.unpack_from(data)
        fields = json.loads(data[_HEAD.size:_HEAD.size + n_head])
        if kind not in NAMES or not isinstance(fields, dict):
            raise ValueError(f"kind {kind}")
        at = _HEAD.size + n_head
        ids = []
        for n in fields.get("n", ()):
            if not isinstance(n, int) or n < 0 or at + 4 * n > len(data):
                raise ValueError("lists of ids")
            ids.append(memoryview(data[at:at + 4 * n]).cast("I"))
            at += 4 * n
        if at != len(data):
            raise ValueError("bytes left over")
        return Message(kind, fields, tuple(ids), n_head)
    except (ValueError, TypeError, RecursionError, struct.error) as err:
        raise ProtocolError(f"a message that cannot be read ({err})") from None


def head_of(data: bytes) -> Tuple[int, Mapping[str, Any]]:
    """Kind and fields of the beginning of a message. Raises ProtocolError where it is too short."""
    try:
        kind, _, n_head = _HEAD.unpack_from(data)
        fields = json.loads(data[_HEAD.size:_HEAD.size + n_head])
        if not isinstance(fields, dict):
            raise ValueError("no fields")
        return kind, fields
    except (ValueError, RecursionError, struct.error) as err:
        raise ProtocolError(f"the beginning of a message that cannot be read ({err})") from None


def frames(sender: int, number: int, message: bytes) -> List[bytes]:
    """A message in parts, to be sent in order. ``sender``: of all messages that are numbered
    together."""
    count = -(-len(message) // _ROOM)
    return [_FRAME.pack(_MAGIC, sender, number & 0xffffffff, i, count)
            + message[i * _ROOM:(i + 1) * _ROOM] for i in range(count)]


class Frame(NamedTuple):
    sender: int
    number: int
    at: int  #: which one of its message
    of: int  #: how many there are
    data: bytes


def unpack_frame(frame: bytes) -> Frame:
    """Raises ProtocolError."""
    try:
        magic, sender, number, index, count = _FRAME.unpack_from(frame)
    except struct.error:
        raise ProtocolError("a frame that is too short") from None
    if magic != _MAGIC or count == 0 or index >= count or count * _ROOM > MESSAGE_MAX + _ROOM:
        raise ProtocolError("a frame that no rank of this version sends")
    return Frame(sender, number, index, count, frame[_FRAME.size:])
