"""The transfers of one rendezvous between this rank and one other: one per pair of regions. What
does not fit into the daemon's limits at the moment waits here, in order."""

from collections import deque
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Protocol, Sequence, Set, Tuple

from ..errors import Internal, KvxferError, TryAgain
from ..events import Event, Op
from ..transfer import Blocks, Transfer

__all__ = ["MORE", "Link", "Stream", "StreamOwner"]

Pair = Tuple[int, int]  #: region here, region there

#: Payload of transfers after which others with the same tag follow; of the last one: b"".
MORE = b"kvp1 more"


class Link(Protocol):
    """The daemon, as far as streams use it. Rank's lock held."""

    def room(self) -> bool:
        """Whether another transfer may be opened."""

    def spare(self) -> bool:
        """Whether one may be opened that is not needed yet."""

    def submit(self, stream: "Stream", pair: Pair, blocks: Optional[Blocks], tag: int,
               streaming: bool) -> Transfer:
        """Raises KvxferError: nothing was submitted; TryAgain: later."""

    def ended(self, transfer: Transfer) -> None:
        """It is not counted by ``room()`` any more."""

    def blocked(self, stream: "Stream") -> None:
        """``stream.go()`` is to be called again soon."""


class StreamOwner(Protocol):
    def on_stream_end(self, stream: "Stream") -> None:
        """Nothing moves any more, and nothing will."""


class Put(NamedTuple):
    """Lists for one pair; ``last``: nothing follows for it."""

    pair: Pair
    blocks: Sequence[Blocks]
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

    @property
    def idle(self) -> bool:
        """Nothing is under way, and nothing waits to be."""
        return not self._running and not self._waiting

    def open(self) -> None:
        """Opens the transfers before there is anything to put: then the first put costs less."""
        try:
            for pair, tag in self._tags.items():
                if not self.link.spare():
                    return
                transfer = self.link.submit(self, pair, None, tag, True)
                self._running[transfer.id] = self._open[pair] = transfer
        except TryAgain:
            pass
        except KvxferError as error:
            self.fail(error)

    def put(self, lists: Dict[Pair, List[Blocks]], last: bool) -> None:
        """More to move. ``last``: every pair has all."""
        for pair in sorted(self._left) if last else lists:
            self._waiting.append(Put(pair, lists.get(pair, ()), last))
        self.go()

    def go(self) -> None:
        """Gives the daemon what waits."""
        while self._waiting and self.error is None and not self._draining:
            put = self._waiting[0]
            try:
                if not self._give(put):
                    self.link.blocked(self)
                    return
            except TryAgain:
                self.link.blocked(self)
                return
            except KvxferError as error:
                self.fail(error)
                return
            self._waiting.popleft()

    def _give(self, put: Put) -> bool:
        """False: no room. What was given is taken off the put that waits first."""
        pair, blocks, last = put
        transfer = self._open.get(pair)
        while blocks:
            if transfer is not None:
                transfer.append(blocks[0])
            elif not self.link.room():
                return False
            else:
                only = last and len(blocks) == 1
                transfer = self.link.submit(self, pair, blocks[0], self._tags[pair], not only)
                self._running[transfer.id] = transfer
                if only:
                    self._left.discard(pair)
                    return True
                self._open[pair] = transfer
            blocks = blocks[1:]
            self._waiting[0] = Put(pair, blocks, last)
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
        if not self._running:
            return
        self._draining = True
        for pair, transfer in list(self._open.items()):
            try:
                transfer.seal(MORE)
            except KvxferError as error:
                self.fail(error)
                return
            del self._open[pair]

    def cancel(self, error: KvxferError) -> None:
        """Ends it early: what is under way is cancelled. The owner is told, here or later."""
        self.fail(error)

    def fail(self, error: KvxferError) -> None:
        if self.error is None:
            self.error = error
        self._waiting.clear()
        self._open.clear()
        for transfer in list(self._running.values()):
            try:
                transfer.cancel()
            except KvxferError:  # the daemon is lost: its end is on its way
                pass
        self._check_end()

    def on_end(self, event: Event) -> None:
        """A transfer of this stream has ended."""
        transfer = event.transfer
        assert transfer is not None
        del self._running[transfer.id]
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
