"""WRITE, the prefill side: blocks are sent as they are added, to whoever has asked for them."""

import itertools
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..errors import Internal, Invalid, KvxferError
from ..events import Event, Op
from ..transfer import Blocks
from ..wait import Wait
from . import plan
from .geometry import Geometry
from .messages import copy_ids
from .peers import Peer
from .rendezvous import Hub, Ids
from .source import ASKED, ENDED, ENDING, OPEN, Dest, Source, Want
from .sources import Sources
from .stream import Pair, Piece, Stream

__all__ = ["Offer"]


class _Row(NamedTuple):
    """Logical blocks of a group, of the layers [layer, stop)."""

    group: int
    span: plan.Span
    layer: int
    stop: int
    wait: Optional[Wait] = None  #: for the daemon: they are final once it is over

    @property
    def end(self) -> int:
        return self.span.first + len(self.span.ids)


def _settled(row: _Row) -> _Row:
    """Nothing is to be waited for any more, where that is known. An event that raises is left to
    the daemon, which finds out what has become of its GPU."""
    try:
        return row if row.wait is None or not row.wait.query() else row._replace(wait=None)
    except Exception:
        return row


class _Feed:
    """What one want of a destination still lacks."""

    def __init__(self, want: Want, here: Geometry, peer: Peer, tokens: Optional[int]) -> None:
        assert peer.geometry is not None
        src, dst = here.groups[want.src_group], peer.geometry.groups[want.dst_group]
        self.want, self._here, self._peer = want, here, peer
        self.n_src, self.n_dst = plan.atoms(src, dst), plan.atoms(dst, src)
        self.start, self.stop = plan.wanted_atoms(want.span.first, want.n_blocks, src, dst, tokens)
        self._steps: Dict[Tuple[int, int], Tuple[List[plan.Run], int]] = {}
        self._steps_of(0, len(src.layers))
        self.reset()

    def reset(self) -> None:
        #: Atoms of layers. Rows do not overlap, so that what is left can be counted.
        self.left = (self.stop - self.start) * sum(take.n_layers for take in self.want.takes)

    def feed(self, row: _Row, out: Dict[Pair, List[Piece]]) -> None:
        """Adds what it wants of a row to the lists."""
        start = max(self.start, row.span.first * self.n_src)
        end = min(self.stop, row.end * self.n_src)
        runs, n_layers = self._steps_of(row.layer, row.stop)
        if start >= end or not n_layers:
            return
        self.left -= (end - start) * n_layers
        for run in runs:
            ids = plan.pairs(run, row.span, self.n_src, self.want.span, self.n_dst, start, end)
            if ids is not None:
                blocks = Blocks(ids[0], ids[1], slice=run.slice, remote_plane=run.remote.plane,
                                planes=range(run.local.plane, run.local.plane + run.n_planes))
                out.setdefault((run.local.region, run.remote.region), []).append(
                    Piece(blocks, row.wait))

    def _steps_of(self, layer: int, stop: int) -> Tuple[List[plan.Run], int]:
        """The runs of these layers, and how many of them are wanted."""
        steps = self._steps.get((layer, stop))
        if steps is None:
            only = range(layer, stop)
            steps = self._steps[layer, stop] = (
                [run for take in self.want.takes
                 for run in self._peer.runs_of(self._here, take, only, True)],
                sum(max(0, min(at + n, stop) - max(at, layer))
                    for take in self.want.takes for at, _, n in take.layers))
        return steps


class _Data:
    """What an open destination needs: its feeds and its stream."""

    def __init__(self, feeds: List[_Feed], stream: Stream) -> None:
        self.feeds, self.stream = feeds, stream

    @property
    def complete(self) -> bool:
        return all(feed.left == 0 for feed in self.feeds)


class Offer(Source):
    """KV that is being computed, promised to a decode engine (``Rank.offer``). Any thread.

    Attributes:
        id: of the request.
        claimed: whether every rank of a decode engine has asked (those that need nothing included).
        infos: ``info`` of those that have asked, in their order.
        ended: whether its Outcome is there.
    """

    role = "offer"

    def __init__(self, hub: Hub, sources: Sources, id: str, deadline: float, label: str) -> None:
        super().__init__(hub, sources, id, deadline, label)
        self._rows: List[_Row] = []
        self._pending: List[Tuple[_Row, Any]] = []
        self._sealed = False

    # ---- calls

    def add(self, group: int, first: int, blocks: Ids, *, layers: Optional[range] = None,
            after: Any = None) -> None:
        """Says that logical blocks [first, first + len(blocks)) of the request are in these blocks
        of this rank, for these layers, and final: they are sent at once to whoever has asked for
        them. May be called per layer, per chunk of the prompt, or both; each block of each layer
        once.

        Args:
            group: index into the pool's groups.
            first: index of the first one among the request's blocks (of ``block_tokens`` each).
            blocks: block ids; copied. Without any, nothing is done.
            layers: indexes into the group's layers; None: all.
            after: what is behind the kernels that write the blocks: they are sent once it is over.
                A :class:`kvxfer.Wait` (``EventPool.record()`` gives one) is left to the daemon,
                which looks every 20 us; any other object with ``query() -> bool``, e.g. a torch
                event, is asked by the rank's thread.

        More than is asked for may be added. Does nothing when the offer has ended. Raises Invalid
        (out of range, a block of a layer a second time, sealed). Never blocks.
        """
        row = self._row(group, first, blocks, layers)
        if row is None:
            return
        ready = after is None or after.query()
        with self._hub.lock:
            if self.ended or self._error is not None:
                return
            self._check_new(row)
            if not ready and isinstance(after, Wait):
                row = row._replace(wait=self._hub.daemon_wait(after))
                ready = row.wait is not None
            if ready:
                self._added(row)
            else:
                self._pending.append((row, after))
                self._hub.poll_soon(self)

    def seal(self, *, deadline: Optional[float] = None) -> None:
        """All has been added. What was asked for and not added makes the offer fail, on both sides.
        ``deadline``: seconds from now, where that is sooner than the first deadline. Never
        blocks."""
        with self._hub.lock:
            if self.ended or self._error is not None:
                return
            self._sealed = True
            if deadline is not None:
                self._until = min(self._until, self._hub.now() + deadline)
                self.watch_clock()
            self._check_sealed()

    def retract(self, timeout: Optional[float] = None) -> bool:
        """Takes back all that was added, and the seal (a preempted request): waits until nothing
        reads its blocks any more, at most ``timeout`` seconds. The offer stays open: what is still
        wanted has to be added again, from any blocks, and sealed. Blocks. True: the blocks are
        free; also when the offer has ended. False: they are not yet, call it again."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._hub.lock:
            self._sealed = False
            self._pending.clear()
            self._rows.clear()
            for dest in self._dests.values():
                if dest.state == OPEN and not dest.data.complete:
                    for feed in dest.data.feeds:
                        feed.reset()
                    dest.data.stream.pause()
            return self._hub.sleep(self._idle, until)

    # ---- inside

    def _row(self, group: int, first: int, blocks: Ids, layers: Optional[range]) -> Optional[_Row]:
        groups = self._hub.geometry.groups
        if not 0 <= group < len(groups):
            raise Invalid(f"group {group}: there are {len(groups)}")
        n_layers = len(groups[group].layers)
        if layers is None:
            layers = range(n_layers)
        if not 0 <= layers.start <= layers.stop <= n_layers or layers.step != 1:
            raise Invalid(f"{layers} of group {group}, which has {n_layers} layers")
        if first < 0:
            raise Invalid(f"first block {first}")
        if blocks is None or len(blocks) == 0 or len(layers) == 0:
            return None
        return _Row(group, plan.Span(first, copy_ids(
            blocks, "block ids")), layers.start, layers.stop)

    def _check_new(self, row: _Row) -> None:
        if self._sealed:
            raise Invalid(f"the offer of {self.id!r} is sealed")
        for other in itertools.chain(self._rows, (pending for pending, _ in self._pending)):
            if (other.group == row.group
                    and other.span.first < row.end and row.span.first < other.end
                    and other.layer < row.stop and row.layer < other.stop):
                raise Invalid(f"blocks {row.span.first}..{row.end - 1} of group {row.group}, "
                              f"layers {row.layer}..{row.stop - 1}: some were added before")

    def _added(self, row: _Row) -> None:
        last = None
        if self._rows:
            last = self._rows[-1] = _settled(self._rows[-1])
        if (last is not None and last.wait is row.wait
                and last.group == row.group and last.span.first == row.span.first
                and last.stop == row.layer and last.span.ids.obj == row.span.ids.obj):
            self._rows[-1] = last._replace(stop=row.stop)
        else:
            self._rows.append(row)
        for dest in list(self._dests.values()):
            if dest.state == OPEN and not dest.data.complete:
                self._feed(dest, [row])

    def on_poll(self) -> bool:
        """Lock held. Whether something is still not final."""
        pending, self._pending = self._pending, []
        if self._error is not None:
            return False
        for row, after in pending:
            try:
                ready = after.query()
            except Exception as error:  # the engine's: a device that has failed
                self._fail(Internal(f"{self.id!r}: the event behind its blocks failed: {error}"))
                return False
            if ready:
                self._added(row)
            else:
                self._pending.append((row, after))
        if self._error is None and len(self._pending) < len(pending):
            self._check_sealed()
        return bool(self._pending)

    def _all_added(self) -> bool:
        return self._sealed and not self._pending

    def _check_sealed(self) -> None:
        if not self._all_added():
            return
        for dest in list(self._dests.values()):
            if dest.state == OPEN and not dest.data.complete:
                self._lacking(dest)
        self._check_end()

    def _lacking(self, dest: Dest) -> None:
        """Fails: the rest will not come."""
        for feed in dest.data.feeds:
            if feed.left and self._error is None:
                want = feed.want
                name = self._hub.geometry.groups[want.src_group].name
                added = sorted((row.span.first, row.end) for row in self._rows
                               if row.group == want.src_group)
                self._fail(Invalid(
                    f"{self.id!r}, group {name!r}: {dest.ask.name} wants its blocks "
                    f"{want.span.first}..{want.span.first + want.n_blocks - 1}, but only these "
                    f"blocks [first, end) were added before the offer was sealed: {added[:8]}"))

    def _feed(self, dest: Dest, rows: List[_Row]) -> None:
        """Sends to a destination what it wants of these rows."""
        lists: Dict[Pair, List[Piece]] = {}
        data: _Data = dest.data
        for feed in data.feeds:
            for row in rows:
                if row.group == feed.want.src_group:
                    feed.feed(row, lists)
        complete = data.complete
        if lists or complete:
            data.stream.put(lists, complete)

    # ---- destinations

    def _dest_up(self, dest: Dest) -> None:
        if dest.state != ASKED:
            return
        geometry, ask = dest.peer.geometry, dest.ask
        assert geometry is not None
        here = self._hub.geometry
        try:
            self._check_life(dest)  # else the blocks are not those of the one that asked
            here.check_words(geometry)
            takes = tuple(take for want in ask.wants for take in want.takes)
            pairs = dest.peer.pairs_of(here, takes, True)
            feeds = [_Feed(want, here, dest.peer, ask.tokens) for want in ask.wants]
        except KvxferError as error:
            self._fail(error)
            return
        stream = self._hub.stream(dest, dest.peer, Op.WRITE, ask.token, pairs, self._label,
                                  min(self._until, ask.until))
        dest.data = _Data(feeds, stream)
        dest.state = OPEN
        if self._rows or dest.data.complete:
            self._rows = [_settled(row) for row in self._rows]
            self._feed(dest, list(self._rows))
        else:
            stream.open()
        self._check_sealed()

    def _dest_sent(self, dest: Dest, stream: Stream) -> None:
        self._count(stream.nbytes, stream.transports)
        dest.error = dest.error or stream.error
        self._dest_end(dest, dest.error)

    def _dest_stop(self, dest: Dest, error: KvxferError) -> None:
        if dest.state == OPEN:
            dest.state = ENDING
            dest.data.stream.fail(error)
        elif dest.state == ASKED:
            self._dest_end(dest, error)

    def _dest_unwanted(self, dest: Dest, error: KvxferError) -> None:
        if dest.state in (ASKED, OPEN):
            self._dest_stop(dest, error)

    def _dest_lost(self, dest: Dest, error: KvxferError, fenced: bool) -> None:
        self._dest_stop(dest, error)

    def _dest_arrival(self, dest: Dest, event: Event) -> None:
        """None comes: the destination is the one that gets arrivals."""

    def _idle(self) -> bool:
        return self.ended or all(dest.data is None or dest.state == ENDED or dest.data.stream.idle
                                 for dest in self._dests.values())
