"""WRITE, the decode side: the source ranks write into blocks that they have been told."""

from typing import Any, List, Tuple

from ..errors import Cancelled, KvxferError, NotFound
from ..events import Event
from .dest import ASKED, ENDING, FINDING, Sink, Src
from .messages import CANCEL, FAILED, READY, Message
from .rendezvous import CAUSE_S, FENCE_MOST_S, insist
from .stream import MORE, Stream

__all__ = ["Expect"]


class Expect(Sink):
    """KV that was asked for (``Rank.expect``). Any thread.

    Attributes:
        id: of the request.
        ended: whether its Outcome is there.
    """

    role = "expect"
    ask_kind = READY
    source_role = "offer"

    def _wants(self, src: Src) -> Tuple[List[Any], List["memoryview"]]:
        wants, ids = [], []
        for need in src.needs:
            span = self._spans[need.dst_group]
            takes = [[take.layers, take.parts] for take in need.takes]
            wants.append([need.src_group, need.dst_group, span.first, len(span.ids), takes])
            ids.append(span.ids)
        return wants, ids

    def _src_arrival(self, src: Src, event: Event) -> None:
        """A transfer of the source into this rank has ended."""
        self._count(event.bytes, {event.transport} if event.transport else set())
        if event.error is None:
            if event.payload != MORE:
                src.arrived += 1
                if src.arrived == src.n_pairs:
                    self._src_end(src, None)
            return
        error = event.error
        if src.n_pairs > 1:  # its FAILED comes when all of its transfers have ended
            if src.state == ASKED and not isinstance(error, Cancelled):
                self._fail(error)
        elif src.state == ASKED and isinstance(error, Cancelled):
            # Why it was cancelled is in its FAILED, which is on its way.
            self._hub.alarm(self._hub.now() + CAUSE_S, lambda: self._src_end(src, error))
        else:
            self._src_end(src, error)

    def _src_message(self, src: Src, message: Message) -> None:
        if message.kind == FAILED:
            self._src_end(src, self._refused(src, message))

    def _src_read(self, src: Src, stream: Stream) -> None:
        """This side reads nothing."""

    def _src_stop(self, src: Src, error: KvxferError) -> None:
        src.state = ENDING
        src.error = src.error or error
        insist(self._hub, src)

    def _src_up(self, src: Src) -> None:
        if src.state != ENDING:
            super()._src_up(src)
        else:
            self._src_tell_end(src)

    def _src_tell_end(self, src: Src) -> None:
        if src.peer.geometry is not None and src.peer.geometry.life == src.life:
            self._tell(src, CANCEL, src.error)
        else:
            self._src_replaced(src)

    def _src_replaced(self, src: Src) -> None:
        """Who was asked is not there any more, but nobody has said that its transfers have
        ended."""
        self._hub.alarm(max(self._hub.now(), self._until) + FENCE_MOST_S,
                        lambda: self._src_end(src, src.error))

    def _src_lost(self, src: Src, error: KvxferError, fenced: bool) -> None:
        if src.state == FINDING or fenced:
            self._src_end(src, error)
            return
        if isinstance(error, NotFound):
            self._src_replaced(src)
        if src.state == ASKED:  # it may still write
            self._src_stop(src, error)
            self._fail(error)
