"""Other ranks: found by name, imported once, and told things in order. Rank's lock held for
everything."""

import logging
import secrets
from collections import deque
from typing import (Any, Callable, Deque, Dict, List, Mapping, Optional, Protocol, Sequence, Set,
                    Tuple)

from ..errors import (AccessDenied, ClientLost, KvxferError, LayoutMismatch, NotFound, PeerLost,
                      PeerUnreachable, ProtocolError, RegionLost, TryAgain, VersionMismatch)
from ..region import Import
from . import messages, plan
from .geometry import Geometry, unpack_note
from .plan import Run, Take

__all__ = ["Failing", "Finder", "Peer", "Watcher", "region_name"]

_log = logging.getLogger("kvxfer")

_RETRY_FIRST_S = 0.02
_RETRY_MOST_S = 0.5
_KEPT_MAX = 4096
_KEPT_LEN_MAX = 512  #: ranges of layers and parts of a plan that is kept: the other side makes them
PAIRS_MAX = 256  #: the low byte of a transfer's tag
#: Told after everything of that client has ended here: nothing of it lands any more.
_FENCED = (ClientLost, PeerLost, RegionLost)
#: What looking again does not mend.
_FINAL = (AccessDenied, LayoutMismatch, ProtocolError, VersionMismatch)


class Failing(Protocol):
    """Who would wait for ever for the result of something that has raised what it must not."""

    def on_defect(self, error: KvxferError) -> None:
        """Fails instead."""


class Watcher(Failing, Protocol):
    """Who needs a peer."""

    def on_peer_up(self, peer: "Peer") -> None:
        """It can be told things now; its geometry is known."""

    def on_peer_missing(self, peer: "Peer") -> None:
        """Nobody has published its name now; it is looked for again."""

    def on_peer_lost(self, peer: "Peer", error: KvxferError, fenced: bool) -> None:
        """It cannot be used any more, or was not found. ``fenced``: it is gone, and nothing of it
        lands here. Not fenced: what it was told may not have arrived, and it may still be there."""


class Finder(Protocol):
    """The daemon and the rest of the rank, as far as peers use it."""

    patience: float

    def now(self) -> float: ...

    def free(self) -> bool:
        """Whether a call of the client would not wait."""

    def find(self, peer: "Peer", region: int) -> Optional[Import]:
        """None: not now (the daemon is lost); it is asked again when it is back. Raises TryAgain:
        later; KvxferError: it cannot be found."""

    def drop(self, imports: Sequence[Import]) -> None:
        """They are not used any more."""

    def alarm(self, when: float, call: Any) -> Any:
        """Calls it then, if not before."""

    def forget(self, peer: "Peer") -> None:
        """It is lost: whoever needs it next gets a new one."""

    def blocked(self, peer: "Peer") -> None:
        """``peer.go()`` is to be called again soon."""

    def quiet(self, peer: "Peer") -> None:
        """There is nothing left that it is to be told."""

    def guard(self, whom: Optional[Failing], call: Callable[..., Any], *args: Any) -> None:
        """Calls it; what it raises is told to ``whom.on_defect`` and hurts nobody else."""

    def count(self, what: str) -> None: ...


class Peer:
    """One other rank.

    Attributes:
        name, address: of the rank.
        up: all of its regions are imported.
        geometry: its note, once it is up.
        imports: of its regions.
        transport: that the last bytes took; "": none yet.
        lost: it will never be up (again).
    """

    def __init__(self, finder: Finder, name: str, address: str) -> None:
        self.finder, self.name, self.address = finder, name, address
        self.up = False
        self.geometry: Optional[Geometry] = None
        self.imports: List[Import] = []
        self.transport = ""
        self._runs: Dict[Tuple[Take, Optional[range], bool], List[Run]] = {}
        self._pairs: Dict[Tuple[Tuple[Take, ...], bool], List[Tuple[int, int]]] = {}
        self.watchers: Set[Watcher] = set()
        self._outbox: Deque[bytes] = deque()
        # Of this object, not of the rank: the other side puts messages into order and joins their
        # frames by it, and there may be two of these for one rank (a second address of it; or one
        # that was lost with half of a message told).
        self._sender = secrets.randbits(64)
        self._number = 0
        self.lost = False
        self._until = finder.now() + finder.patience
        self._pause = _RETRY_FIRST_S
        self._n_up = 0
        self._look()

    @property
    def pending(self) -> bool:
        """There is something that it was not told yet."""
        return bool(self._outbox)

    # ---- finding

    def _look(self) -> None:
        """Looks for the regions that are still to be found."""
        if self.lost or self.up:
            return
        n = 1 if self.geometry is None else self.geometry.n_regions
        try:
            while len(self.imports) < n:
                found = self.finder.find(self, len(self.imports))
                if found is None:
                    return
                self.imports.append(found)
        except TryAgain:  # the daemon was not asked: patience begins when it is
            self._until = self.finder.now() + self.finder.patience
            self._look_again()
        except KvxferError as error:  # not at once: who needs it does not watch it yet
            lost = error
            self.finder.alarm(0, lambda: self.lose(lost, fenced=False))

    def _look_again(self) -> None:
        self.finder.alarm(self.finder.now() + self._pause, self._look)
        self._pause = min(2 * self._pause, _RETRY_MOST_S)

    def on_up(self, import_: Import, note: bytes) -> None:
        """One of its regions can be used."""
        if import_ not in self.imports or self.up:
            return
        try:
            if self.geometry is None:
                self.geometry = unpack_note(note)
        except KvxferError as error:
            self.lose(error, fenced=False)
            return
        self._n_up += 1
        self._look()
        if self._n_up < self.geometry.n_regions:
            return
        self.up = True
        for watcher in list(self.watchers):
            self.finder.guard(watcher, watcher.on_peer_up, self)
        self.go()

    def on_lost(self, import_: Import, error: KvxferError) -> None:
        """One of its regions is gone, or was not found."""
        if import_ not in self.imports:
            return
        if self.up:
            # Of several regions the first is closed last: then everything of that rank has ended.
            if not isinstance(error, RegionLost) or import_ is self.imports[0]:
                self.lose(error, fenced=isinstance(error, _FENCED))
            return
        now = self.finder.now()
        if isinstance(error, _FINAL) or now + self._pause > self._until:
            self.lose(self._explained(error), fenced=False)
            return
        self.reset()
        self._look_again()
        if isinstance(error, NotFound):
            for watcher in list(self.watchers):
                self.finder.guard(watcher, watcher.on_peer_missing, self)

    def _explained(self, error: KvxferError) -> KvxferError:
        where = f"at {self.address}" if self.address else "on this node"
        hint = ""
        if isinstance(error, NotFound):
            hint = ": is that engine running, with this name and this many ranks?"
        elif isinstance(error, PeerUnreachable):
            hint = ": is the address that of the other node's daemon for peers (kvxferctl status)?"
        told = type(error)(f"rank {self.name} {where}: {error.text}{hint}", errno=error.errno,
                           scope=error.scope, vendor_code=error.vendor_code)
        return told

    def reset(self) -> None:
        """Its imports are dropped, and it is looked for again later."""
        self.finder.drop(self.imports)
        self.imports = []
        self.geometry = None
        self.up = False
        self._n_up = 0

    def restart(self) -> None:
        """The daemon is back: whoever is still not found is looked for again."""
        if not self.up and not self.lost:
            self.reset()
            self._until = self.finder.now() + self.finder.patience
            self._look()

    def lose(self, error: KvxferError, fenced: bool) -> None:
        if self.lost:
            return
        self.lost = True
        self.up = False
        self.finder.drop(self.imports)
        self.imports = []
        self._outbox.clear()
        self.finder.forget(self)
        for watcher in list(self.watchers):
            self.finder.guard(watcher, watcher.on_peer_lost, self, error, fenced)
        self.watchers.clear()
        self.finder.quiet(self)

    def on_defect(self, error: KvxferError) -> None:
        self.lose(error, fenced=False)

    # ---- planning

    def runs_of(self, here: Geometry, take: Take, only: Optional[range], here_is_source: bool
                ) -> List[Run]:
        """``plan.runs``, kept for the next request."""
        key = (take, only, here_is_source)
        runs = self._runs.get(key)
        if runs is None:
            if len(self._runs) >= _KEPT_MAX:
                self._runs.clear()
            assert self.geometry is not None
            runs = plan.runs(here, self.geometry, take, only, here_is_source)
            if _length(take) <= _KEPT_LEN_MAX:
                self._runs[key] = runs
        return runs

    def pairs_of(self, here: Geometry, takes: Tuple[Take, ...], here_is_source: bool
                 ) -> List[Tuple[int, int]]:
        """``plan.regions_of``, kept; raises LayoutMismatch unless all takes fit."""
        key = (takes, here_is_source)
        pairs = self._pairs.get(key)
        if pairs is None:
            if len(self._pairs) >= _KEPT_MAX:
                self._pairs.clear()
            assert self.geometry is not None
            for take in takes:
                plan.check_take(*((here, self.geometry) if here_is_source
                                  else (self.geometry, here)), take)
            pairs = plan.regions_of(here, self.geometry, takes, here_is_source)
            if len(pairs) > PAIRS_MAX:
                raise LayoutMismatch(f"{len(pairs)} pairs of memories with {self.name}, at most "
                                     f"{PAIRS_MAX}: put the tensors into fewer memories")
            if sum(map(_length, takes)) <= _KEPT_LEN_MAX:
                self._pairs[key] = pairs
        return pairs

    # ---- telling

    def send(self, kind: int, fields: Mapping[str, Any],
             ids: Sequence["memoryview"] = ()) -> None:
        """Tells it something, once it is up; in order. Raises Invalid: it is too long."""
        if self.lost:
            return
        self.send_packed(messages.pack(kind, fields, ids))

    def send_packed(self, data: bytes) -> None:
        """As ``send()``, of what ``messages.pack()`` gave."""
        if self.lost:
            return
        self._number += 1
        self._outbox.extend(messages.frames(self._sender, self._number, data))
        self.finder.count("messages_out")
        if self.up:
            self.go()

    def go(self) -> None:
        if not (self._outbox and self.up):
            return
        if not self.finder.free():
            self.finder.blocked(self)
            return
        try:
            while self._outbox:
                self.imports[0].post(self._outbox[0])
                self._outbox.popleft()
        except TryAgain:
            self.finder.blocked(self)
        except KvxferError as error:  # told by an event, too
            _log.debug("kvxfer: %s: a message was not sent: %s", self.name, error)
        else:
            self.finder.quiet(self)


def _length(take: Take) -> int:
    return len(take.layers) + len(take.parts)


def region_name(rank: str, region: int) -> str:
    """Under which a rank's n-th region is published."""
    return rank if region == 0 else f"{rank}/r{region}"
