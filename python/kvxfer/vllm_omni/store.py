"""The owner's side: what was put and not fetched yet, and who has been promised it.

An entry is free or pinned for one claim. It is pinned when it is granted, and until the getter's
DONE, which follows the READ's end, the ARRIVAL of a READ that failed, or the loss of the getter,
which is told after the fence. Only what is free expires, is replaced in place or is given to the
next claim; what is pinned goes afterwards. So no byte that is being read is ever handed out again.

Any thread: a lock guards the state. Nothing here blocks or sends: methods return what is to be
sent, as (peer, message), which the caller sends without the lock.
"""

import collections
import itertools
import logging
import threading
import time
from typing import Any, Deque, Dict, Hashable, Iterable, List, NamedTuple, Optional, Set, Tuple

from . import wire

__all__ = ["Entry", "Store", "Send"]

Peer = Hashable
Send = Tuple[Peer, wire.Message]


class Entry:
    """One put. ``data`` (bytes that fit a message) or ``buffer`` (a part of the pool).

    Attributes:
        key: with its stages. plain: as given to ``put``.
        owner: the connector that put it.
        free: called once, when its memory may be used again.
    """

    __slots__ = ("key", "plain", "owner", "put", "size", "fast", "offset", "data", "free",
                 "claim", "over", "expires")

    def __init__(self, key: str, plain: str, owner: Any, size: int, fast: bool, *,
                 offset: int = 0, data: Optional[bytes] = None, free: Any = None) -> None:
        self.key = key
        self.plain = plain
        self.owner = owner
        self.put = next(_puts)
        self.size = size
        self.fast = fast
        self.offset = offset
        self.data = data
        self.free = free
        self.claim: Optional[_Claim] = None
        self.over = False  # replaced, cleaned up or closed: goes when its pin ends
        self.expires = 0.0


class _Claim(NamedTuple):
    id: int
    peer: Peer
    expected: int


_puts = itertools.count(1)

#: Most gets that may wait at one process for what is not there yet.
CLAIMS_MAX = 65536


class Store:
    """All entries and claims of a stage process. ``log``: told of what is lost, by key."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._entries: Dict[str, Entry] = {}
        self._plain: Dict[str, Set[str]] = {}
        self._granted: Dict[int, Entry] = {}  # pinned entries by their put number
        self._waiting: Dict[str, Deque[_Claim]] = {}
        self._claims: Dict[int, Tuple[str, _Claim]] = {}  # those waiting, and their key
        self.expired = 0

    # ---- this process

    def add(self, entry: Entry, ttl: float) -> List[Send]:
        """Takes the entry, for ``ttl`` seconds; while it is pinned it does not expire. One of the
        same key is replaced: it goes when it is not pinned."""
        with self._lock:
            old = self._entries.pop(entry.key, None)
            if old is not None:
                self._log.warning("put of %s again: what nobody fetched is dropped", entry.key)
                self._drop(old)
            entry.expires = time.monotonic() + ttl
            self._entries[entry.key] = entry
            self._plain.setdefault(entry.plain, set()).add(entry.key)
            return self._grant_next(entry)

    def remove(self, key: str, owner: Any) -> int:
        """Forgets what was put under a key (with its stages, or as given to ``put``). Returns how
        many entries; pinned ones go when their READ has ended."""
        with self._lock:
            keys = {key} | self._plain.get(key, set())
            found = [e for e in map(self._entries.get, keys) if e is not None and e.owner is owner]
            self._forget(found)
            return len(found)

    def remove_owner(self, owner: Any) -> int:
        """Forgets all that a connector put. Returns how many of them are pinned still."""
        with self._lock:
            self._forget([e for e in self._entries.values() if e.owner is owner])
            return sum(e.owner is owner for e in self._granted.values())

    def pinned(self, owner: Any) -> int:
        with self._lock:
            return sum(e.owner is owner for e in self._granted.values())

    def expire(self, now: float) -> None:
        """Drops entries that nobody has fetched in their time. What is pinned stays."""
        with self._lock:
            stale = [e for e in self._entries.values() if e.claim is None and now >= e.expires]
            for entry in stale:
                self._log.warning("%s (%d bytes) was not fetched within buffer_ttl_seconds: "
                                  "dropped", entry.key, entry.size)
            self._forget(stale)
            self.expired += len(stale)

    # ---- getters

    def claim(self, peer: Peer, claim: wire.Claim) -> List[Send]:
        """A getter asks. Its claim waits here when the entry is not there, or pinned."""
        with self._lock:
            mine = _Claim(claim.claim, peer, claim.expected)
            entry = self._entries.get(claim.key)
            if entry is not None and entry.claim is not None and entry.claim.peer == peer:
                del self._granted[entry.put]  # a getter asks again only when its READ has ended
                entry.claim = None
            if entry is not None and entry.claim is None:
                return self._grant(entry, mine)
            if mine.id in self._claims or len(self._claims) >= CLAIMS_MAX:
                return [(peer, wire.Refuse(mine.id, f"{len(self._claims)} gets wait at the owner "
                                           "already, or this one does: ask again later"))]
            self._waiting.setdefault(claim.key, collections.deque()).append(mine)
            self._claims[mine.id] = claim.key, mine
            return [(peer, wire.Wait(mine.id, entry is not None))]

    def abandon(self, claim: int) -> List[Send]:
        """A getter takes its claim back. It has not seen a grant, and will not READ by one that is
        under way to it."""
        with self._lock:
            self._unwait(claim)
            held = [e for e in self._granted.values() if e.claim and e.claim.id == claim]
            return [send for entry in held for send in self._unpin(entry, False)]

    def done(self, put: int, claim: int, ok: bool) -> List[Send]:
        """The getter says that nothing of a grant is read any more: it has the bytes, or (not ok)
        gives them back, and they are kept for the next claim."""
        return self._end(put, claim, ok, None if ok else ValueError("given back by the getter"))

    def arrival(self, put: int, claim: int, nbytes: int, error: Optional[Exception]) -> List[Send]:
        """The READ of a grant has ended. Where it failed nobody will say more, and the pin ends.
        Where all bytes were read DONE follows: a daemon that dies before the getter has been told
        must not cost the bytes."""
        with self._lock:
            entry = self._granted.get(put)
            size = entry.size if entry is not None else 0
        if error is None and nbytes != size:
            error = ValueError(f"{nbytes} bytes were read of {size}")
        return [] if error is None else self._end(put, claim, False, error)

    def _end(self, put: int, claim: int, ok: bool, error: Optional[Exception]) -> List[Send]:
        with self._lock:
            entry = self._granted.get(put)
            if entry is None or entry.claim is None or entry.claim.id != claim:
                return []
            if error is not None:
                self._log.warning("%s was not fetched (%s): kept", entry.key, error)
            return self._unpin(entry, ok)

    def peer_lost(self, peer: Optional[Peer]) -> List[Send]:
        """A getter is gone, or (None) the daemon, and with it all getters: told after the fence,
        so their pins end. What they had been granted and not read is given to others."""
        with self._lock:
            for _, claim in list(self._claims.values()):
                if peer in (None, claim.peer):
                    self._unwait(claim.id)
            sends: List[Send] = []
            for entry in list(self._granted.values()):
                if entry.claim is not None and peer in (None, entry.claim.peer):
                    self._log.warning("the getter of %s is lost: kept for another", entry.key)
                    sends += self._unpin(entry, False)
            return sends

    def peers(self) -> Set[Peer]:
        """Those with a claim that waits or is granted."""
        with self._lock:
            granted = {e.claim.peer for e in self._granted.values() if e.claim is not None}
            return granted | {claim.peer for _, claim in self._claims.values()}

    def peer_of(self, put: int) -> Optional[Peer]:
        """Who holds the grant of a put."""
        with self._lock:
            entry = self._granted.get(put)
            return entry.claim.peer if entry is not None and entry.claim is not None else None

    def stats(self) -> Dict[str, int]:
        with self._lock:
            return {"waiting_for_getter": sum(e.claim is None for e in self._entries.values()),
                    "pinned": len(self._granted), "claims_waiting": len(self._claims),
                    "expired": self.expired}

    # ---- lock held

    def _grant(self, entry: Entry, claim: _Claim) -> List[Send]:
        if claim.expected not in (-1, entry.size):
            text = (f"{entry.key} has {entry.size} bytes here, the getter was told "
                    f"{claim.expected}: the metadata is of another put")
            self._log.error("%s", text)
            return [(claim.peer, wire.Refuse(claim.id, text))]
        entry.claim = claim
        self._granted[entry.put] = entry
        return [(claim.peer, wire.Grant(claim.id, entry.put, entry.size, entry.offset, entry.fast,
                                        entry.data))]

    def _grant_next(self, entry: Entry) -> List[Send]:
        sends: List[Send] = []
        queue = self._waiting.get(entry.key)
        while queue and entry.claim is None:
            claim = queue.popleft()
            del self._claims[claim.id]
            sends += self._grant(entry, claim)
        if queue is not None and not queue:
            del self._waiting[entry.key]
        return sends

    def _unpin(self, entry: Entry, fetched: bool) -> List[Send]:
        entry.claim = None
        del self._granted[entry.put]
        if fetched and self._entries.get(entry.key) is entry:
            self._forget([entry])
        elif entry.over or fetched:
            self._drop(entry)
        else:
            entry.expires = max(entry.expires, time.monotonic() + 1)
            return self._grant_next(entry)
        return []

    def _forget(self, entries: Iterable[Entry]) -> None:
        for entry in list(entries):
            del self._entries[entry.key]
            keys = self._plain[entry.plain]
            keys.discard(entry.key)
            if not keys:
                del self._plain[entry.plain]
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        """Out of the map already. Pinned: _unpin comes back here."""
        entry.over = True
        if entry.claim is None and entry.free is not None:
            free, entry.free = entry.free, None
            free()

    def _unwait(self, claim: int) -> None:
        key, waiting = self._claims.pop(claim, ("", None))
        if waiting is None:
            return
        queue = self._waiting[key]
        queue.remove(waiting)
        if not queue:
            del self._waiting[key]
