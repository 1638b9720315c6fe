"""Messages between the processes of a pipeline: who wants what, who may read it, what became of it.

Pure: bytes in, values out. A message is at most ``kvxfer.PAYLOAD_MAX`` bytes and starts with a
head {version, kind, claim}: the claim is the getter's number for one ``get``, of 63 random bits
and a count.

    getter                         owner
      | CLAIM key, size it expects -> |   pinned from here on, for this claim
      | <- GRANT place, size          |   or the bytes themselves when they are few
      | READ of the daemons ........  |   its ARRIVAL tells the owner that it has ended
      | DONE ok or not -------------> |   the pin ends: the bytes are there, or are given back

``WAIT`` answers a claim on what is not there yet (GRANT follows when it is), ``REFUSE`` one that
cannot be met, ``ABANDON`` takes a claim back.
"""

import struct
from typing import NamedTuple, Optional, Union

__all__ = ["Abandon", "Claim", "Done", "Grant", "INLINE_MAX", "KEY_MAX", "Message", "Refuse",
           "Wait", "WireError", "pack_read", "unpack", "unpack_read"]

VERSION = 1
_MESSAGE_MAX = 4096
_CLAIM, _GRANT, _WAIT, _REFUSE, _DONE, _ABANDON = range(1, 7)
_HEAD = struct.Struct("<BBQ")
_CLAIM_BODY = struct.Struct("<qHBB")
_GRANT_BODY = struct.Struct("<QQQB")
_WAIT_BODY = struct.Struct("<B")
_DONE_BODY = struct.Struct("<QB")
_READ = struct.Struct("<BQQ")
_FAST, _INLINE = 1, 2

#: Longest key in bytes of UTF-8.
KEY_MAX = 3072
#: Most bytes that a GRANT carries itself.
INLINE_MAX = _MESSAGE_MAX - _HEAD.size - _GRANT_BODY.size


class WireError(ValueError):
    """Not a message of this version: another version of kvxfer.vllm_omni at the other side."""


class Claim(NamedTuple):
    """Getter: give me ``key``. ``expected``: bytes it was told by ``put``'s metadata; -1: not told.
    ``name`` and ``address``: the getter's pool, where the answer goes."""

    claim: int
    expected: int
    key: str
    name: str
    address: str

    def pack(self) -> bytes:
        key, name, address = (text.encode() for text in (self.key, self.name, self.address))
        if len(key) > KEY_MAX or len(name) > 128 or len(address) > 255:
            raise WireError(f"key of {len(key)} bytes: at most {KEY_MAX}")
        body = _CLAIM_BODY.pack(self.expected, len(key), len(name), len(address))
        return _HEAD.pack(VERSION, _CLAIM, self.claim) + body + key + name + address


class Grant(NamedTuple):
    """Owner: it is there and pinned for this claim. ``data`` None: READ [offset, + size) of the
    owner's pool. ``fast``: raw bytes of a tensor or bytes object; else serialised."""

    claim: int
    put: int
    size: int
    offset: int
    fast: bool
    data: Optional[bytes]

    def pack(self) -> bytes:
        flags = (_FAST if self.fast else 0) | (_INLINE if self.data is not None else 0)
        body = _GRANT_BODY.pack(self.put, self.size, self.offset, flags)
        return _HEAD.pack(VERSION, _GRANT, self.claim) + body + (self.data or b"")


class Wait(NamedTuple):
    """Owner: not now. ``known``: it is there, but pinned for another claim."""

    claim: int
    known: bool

    def pack(self) -> bytes:
        return _HEAD.pack(VERSION, _WAIT, self.claim) + _WAIT_BODY.pack(self.known)


class Refuse(NamedTuple):
    """Owner: this claim is over. ``text`` says why, for people."""

    claim: int
    text: str

    def pack(self) -> bytes:
        return _HEAD.pack(VERSION, _REFUSE, self.claim) + self.text.encode()[:1024]


class Done(NamedTuple):
    """Getter: nothing of a grant is read any more. ``ok``: its bytes are here; else the owner keeps
    them for another claim."""

    claim: int
    put: int
    ok: bool

    def pack(self) -> bytes:
        return _HEAD.pack(VERSION, _DONE, self.claim) + _DONE_BODY.pack(self.put, self.ok)


class Abandon(NamedTuple):
    """Getter: forget a claim that has not been granted."""

    claim: int

    def pack(self) -> bytes:
        return _HEAD.pack(VERSION, _ABANDON, self.claim)


Message = Union[Claim, Grant, Wait, Refuse, Done, Abandon]


def unpack(data: bytes) -> Message:
    """Raises WireError for anything that is not exactly one message."""
    try:
        version, kind, claim = _HEAD.unpack_from(data)
        if version != VERSION:
            raise WireError(f"message of version {version}, this side speaks {VERSION}: install "
                            "the same kvxfer in every stage")
        return _unpack_body(kind, claim, data)
    except (struct.error, UnicodeDecodeError) as err:
        raise WireError(f"message of {len(data)} bytes is cut short or not ours: {err}") from None


def _unpack_body(kind: int, claim: int, data: bytes) -> Message:
    at = _HEAD.size
    if kind == _GRANT:
        put, size, offset, flags = _GRANT_BODY.unpack_from(data, at)
        inline = data[at + _GRANT_BODY.size:] if flags & _INLINE else None
        return Grant(claim, put, size, offset, bool(flags & _FAST), inline)
    if kind == _CLAIM:
        return _unpack_claim(claim, data, at)
    if kind == _WAIT:
        return Wait(claim, bool(_WAIT_BODY.unpack_from(data, at)[0]))
    if kind == _DONE:
        put, ok = _DONE_BODY.unpack_from(data, at)
        return Done(claim, put, bool(ok))
    if kind == _REFUSE:
        return Refuse(claim, data[at:].decode())
    if kind == _ABANDON:
        return Abandon(claim)
    raise WireError(f"message of unknown kind {kind}")


def _unpack_claim(claim: int, data: bytes, at: int) -> Claim:
    expected, n_key, n_name, n_address = _CLAIM_BODY.unpack_from(data, at)
    at += _CLAIM_BODY.size
    if len(data) != at + n_key + n_name + n_address:
        raise WireError(f"claim of {len(data)} bytes: its parts do not fill it")
    name = at + n_key
    address = name + n_name
    return Claim(claim, expected, data[at:name].decode(), data[name:address].decode(),
                 data[address:].decode())


def pack_read(put: int, claim: int) -> bytes:
    """Payload of a READ: tells the owner, in the ARRIVAL, of which grant it was."""
    return _READ.pack(VERSION, put, claim)


def unpack_read(payload: bytes) -> "tuple[int, int]":
    """(put, claim). Raises WireError."""
    if len(payload) != _READ.size or payload[0] != VERSION:
        raise WireError(f"arrival with a payload of {len(payload)} bytes is not of a get")
    _, put, claim = _READ.unpack(payload)
    return put, claim
