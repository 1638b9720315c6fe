"""READ, the decode side: the source ranks say which blocks, and this rank reads them."""

from typing import Any, Dict, List, Tuple

from ..errors import KvxferError, ProtocolError
from ..events import Event, Op
from ..transfer import Blocks
from . import plan
from .dest import ASKED, ENDING, FINDING, READING, Need, Sink, Src, _of
from .messages import CLAIM, FAILED, GRANT, RELEASE, REVOKE, Message
from .plan import Span
from .stream import Pair, Piece, Stream

__all__ = ["Fetch"]


class Fetch(Sink):
    """Blocks that are being read (``Rank.fetch``). Any thread.

    Attributes:
        id: of the request.
        ended: whether its Outcome is there.
    """

    role = "fetch"
    ask_kind = CLAIM
    source_role = "hold"

    def _wants(self, src: Src) -> Tuple[List[Any], List["memoryview"]]:
        wants = []
        for need in src.needs:
            first, end = self._src_blocks(src, need)
            wants.append([need.src_group, need.dst_group, first, end - first, []])
        return wants, []

    def _src_blocks(self, src: Src, need: Need) -> Tuple[int, int]:
        """[first, end) of the source's logical blocks that hold what is needed."""
        n = self._atoms(src, need)[1]
        return need.start // n, -(-need.end // n)

    def _atoms(self, src: Src, need: Need) -> Tuple[int, int]:
        """Atoms of a block here, of one there."""
        here = self._hub.geometry.groups[need.dst_group]
        there = _of(src.peer).groups[need.src_group]
        return plan.atoms(here, there), plan.atoms(there, here)

    def _src_message(self, src: Src, message: Message) -> None:
        if message.kind == FAILED and src.state == ASKED:
            self._src_end(src, self._refused(src, message))
        elif message.kind == REVOKE and src.state in (ASKED, READING):
            src.error = src.error or self._refused(src, message)
            self._fail(src.error)
            self._src_stop_once(src, src.error)
        elif message.kind == GRANT and src.state == ASKED:
            self._read(src, message)

    def _read(self, src: Src, message: Message) -> None:
        lists: Dict[Pair, List[Piece]] = {}
        if len(message.ids) != len(src.needs):
            self._fail(ProtocolError(f"{src.peer.name} granted {len(message.ids)} lists of blocks, "
                                     f"{len(src.needs)} were asked for"))
            return
        for need, ids in zip(src.needs, message.ids):
            first, end = self._src_blocks(src, need)
            if len(ids) != end - first:
                self._fail(ProtocolError(f"{src.peer.name} granted {len(ids)} blocks instead of "
                                         f"{end - first}"))
                return
            self._lists(src, need, Span(first, ids), lists)
        src.state = READING
        takes = tuple(take for need in src.needs for take in need.takes)
        src.stream = self._hub.stream(src, src.peer, Op.READ, src.token,
                                      src.peer.pairs_of(self._hub.geometry, takes, False),
                                      self._label, self._until)
        src.stream.put(lists, True)

    def _lists(self, src: Src, need: Need, remote: Span, out: Dict[Pair, List[Piece]]) -> None:
        n_local, n_remote = self._atoms(src, need)
        local = self._spans[need.dst_group]
        for take in need.takes:
            for run in src.peer.runs_of(self._hub.geometry, take, None, False):
                ids = plan.pairs(run, local, n_local, remote, n_remote, need.start, need.end)
                if ids is not None:
                    blocks = Blocks(ids[0], ids[1], slice=run.slice, remote_plane=run.remote.plane,
                                    planes=range(run.local.plane, run.local.plane + run.n_planes))
                    out.setdefault((run.local.region, run.remote.region), []).append(Piece(blocks))

    def _src_read(self, src: Src, stream: Stream) -> None:
        self._count(stream.nbytes, stream.transports)
        error = src.error or stream.error
        if error is not None:
            self._tell(src, RELEASE, error)
        self._src_end(src, error)

    def _src_stop(self, src: Src, error: KvxferError) -> None:
        if src.stream is not None:
            src.state = ENDING
            src.stream.fail(error)
        else:  # a GRANT that is on its way is not used any more
            self._tell(src, RELEASE, error)
            self._src_end(src, error)

    def _src_stop_once(self, src: Src, error: KvxferError) -> None:
        if src.state in (ASKED, READING):
            self._src_stop(src, error)

    def _src_lost(self, src: Src, error: KvxferError, fenced: bool) -> None:
        """Only this rank moves bytes: what it has submitted ends by itself."""
        src.error = src.error or error
        if src.state in (FINDING, ASKED):
            self._src_end(src, error)
        elif src.state == READING:
            self._src_stop(src, error)

    def _src_arrival(self, src: Src, event: Event) -> None:
        """None comes: the source is the one that gets arrivals."""
