"""The transfers of one rendezvous between this rank and one other: one per pair of regions. What
does not fit into the daemon's limits at the moment waits here, in order."""

from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Protocol, Sequence, Set, Tuple

from ..errors import Internal, KvxferError, TryAgain
from ..events import Event, Op
from ..transfer import Blocks, Transfer
from ..wait import Wait

__all__ = ["MORE", "Link", "Piece", "Stream", "StreamOwner"]

Pair = Tuple[int, int]  #: region here, region there

#: Payload of transfers after which others with the same tag follow; of the last one: b"".
MORE = b"kvp1 more"


class Link(Protocol):
    """The daemon, as far as streams use it. Rank's lock held."""

    def free(self) -> bool:
        """Whether a call of the client would not wait. If not: ``blocked()``, and later."""

    def room(self) -> bool:
        """Whether another transfer may be opened."""

    def spare(self) -> bool:
        """Whether one may be opened that is not needed yet."""

    def submit(self, stream: "Stream", pair: Pair, piece: "Optional[Piece]", tag: int,
               streaming: bool) -> Transfer:
        """Raises KvxferError: nothing was submitted; TryAgain: later."""

    def ended(self, transfer: Transfer) -> None:
        """It is not counted by ``room()`` any more."""

    def blocked(self, stream: "Stream") -> None:
        """``stream.go()`` is to be called again soon."""


class StreamOwner(Protocol):
    def on_stream_end(self, stream: "Stream") -> None:
        """Nothing moves any more, and nothing will."""

    def on_defect(self, error: KvxferError) -> None:
        """Something of it has raised what it must not: it fails."""


class Piece(NamedTuple):
    """A list, and what the daemon waits for before it moves its bytes."""

    blocks: Blocks
    wait: Optional[Wait] = None

    @property
    def options(self) -> Dict[str, Any]:
        """For submit and append."""
        return {} if self.wait is None else {"wait": self.wait}


class Put(NamedTuple):
    """Lists for one pair; ``last``: nothing follows for it."""

    pair: Pair
    pieces: Sequence[Piece]
    last: bool


class Stream:
    """Ends once: after ``put(last=True)`` for every pair when all has moved, or after the first
    failure or ``cancel()`` when nothing moves any more. Rank's lock held for everything.

    Attributes:
        peer: the other rank, which is up.
        error: the first failure; None: well so far.
        nbytes, transports: of what has ended.
    """

    def __init__(self, link: Link, owner: StreamOwner, peer: Any, op: Op, token: int,
                 pairs: Sequence[Pair], label: str, until: float) -> None:
        self.link, self.owner, self.peer, self.op = link, owner, peer, op
        self.label, self.until = label, until
        self.error: Optional[KvxferError] = None
        self.ended = False
        self.nbytes = 0
        self.transports: Set[str] = set()
        self._tags = {pair: token << 8 | i for i, pair in enumerate(pairs)}
        self._left = set(pairs)  # pairs whose last list has not been given to the daemon
        self._open: Dict[Pair, Transfer] = {}  # more may be appended
        self._running: Dict[int, Transfer] = {}  # by transfer id; all that have not ended
        self._waiting: Deque[Put] = deque()
        self._draining = False  # after pause(): nothing is given until all have ended
        self._to_cancel: Dict[int, Transfer] = {}  # by transfer id; not told to the daemon yet

    @property
    def idle(self) -> bool:
        """Nothing is under way, and nothing waits to be."""
        return not self._running and not self._waiting

    def open(self) -> None:
        """Opens the transfers before there is anything to put: then the first put costs less."""
        try:
            for pair, tag in self._tags.items():
                if not (self.link.free() and self.link.spare()):
                    return
                transfer = self.link.submit(self, pair, None, tag, True)
                self._running[transfer.id] = self._open[pair] = transfer
        except TryAgain:
            pass
        except KvxferError as error:
            self.fail(error)

    def put(self, lists: Dict[Pair, List[Piece]], last: bool) -> None:
        """More to move. ``last``: every pair has all."""
        for pair in sorted(self._left) if last else lists:
            self._waiting.append(Put(pair, lists.get(pair, ()), last))
        self.go()

    def go(self) -> None:
        """Gives the daemon what waits: cancels, ends of what is to be paused, lists. What it does
        not take now is given again soon."""
        if not (self._waiting or self._draining or self._to_cancel):
            return
        try:
            if not (self.link.free() and self._go()):
                self.link.blocked(self)
        except TryAgain:
            self.link.blocked(self)
        except KvxferError as error:
            self.fail(error)

    def _go(self) -> bool:
        """False: no room."""
        if self.error is not None:
            self._cancel()
            return True
        if self._draining:
            self._seal()
            return True
        while self._waiting:
            if not self._give(self._waiting[0]):
                return False
            self._waiting.popleft()
        return True

    def _give(self, put: Put) -> bool:
        """False: no room. What was given is taken off the put that waits first."""
        pair, pieces, last = put
        transfer = self._open.get(pair)
        while pieces:
            if transfer is not None:
                transfer.append(pieces[0].blocks, **pieces[0].options)
            elif not self.link.room():
                return False
            else:
                only = last and len(pieces) == 1
                transfer = self.link.submit(self, pair, pieces[0], self._tags[pair], not only)
                self._running[transfer.id] = transfer
                if only:
                    self._left.discard(pair)
                    return True
                self._open[pair] = transfer
            pieces = pieces[1:]
            self._waiting[0] = Put(pair, pieces, last)
        if last:
            if transfer is None:
                raise Internal(f"nothing to move between the regions {pair}: please report this")
            transfer.seal()
            del self._open[pair]
            self._left.discard(pair)
        return True

    def pause(self) -> None:
        """What waits is forgotten; what is under way ends, and only then can more be put."""
        self._waiting.clear()
        self._draining = bool(self._running)
        self.go()

    def _seal(self) -> None:
        """Raises TryAgain: some are still open."""
        for pair, transfer in list(self._open.items()):
            transfer.seal(MORE)
            del self._open[pair]

    def fail(self, error: KvxferError) -> None:
        """Ends it early: what is under way is cancelled. The owner is told, here or later."""
        if self.error is None:
            self.error = error
            self._to_cancel = dict(self._running)
        self._waiting.clear()
        self._open.clear()
        self._draining = False
        self.go()
        self._check_end()

    def _cancel(self) -> None:
        """Raises TryAgain: some have not been cancelled."""
        for number, transfer in list(self._to_cancel.items()):
            try:
                transfer.cancel()
            except TryAgain:
                raise
            except KvxferError:  # the daemon is lost: its end is on its way
                pass
            del self._to_cancel[number]

    def on_defect(self, error: KvxferError) -> None:
        self.owner.on_defect(error)

    def on_end(self, event: Event) -> None:
        """A transfer of this stream has ended."""
        transfer = event.transfer
        assert transfer is not None
        del self._running[transfer.id]
        self._to_cancel.pop(transfer.id, None)
        self.link.ended(transfer)
        self.nbytes += event.bytes
        if event.transport:
            self.transports.add(event.transport)
        for pair, other in list(self._open.items()):
            if other is transfer:  # before it was sealed: it has failed
                del self._open[pair]
        if event.error is not None:
            self.fail(event.error)
            return
        if self._draining and not self._running:
            self._draining = False
            self.go()
        self._check_end()

    def _check_end(self) -> None:
        over = self.error is not None or not (self._left or self._waiting)
        if over and not self._running and not self.ended:
            self.ended = True
            self.owner.on_stream_end(self)
