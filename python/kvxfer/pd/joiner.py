"""Makes messages of frames. Pure. Whoever may send to this rank at all can send it anything, so
what is kept of messages that are not whole is bounded."""

from collections import OrderedDict
from typing import Callable, List, Optional

from ..errors import ProtocolError
from .messages import Frame, unpack_frame

__all__ = ["Joiner", "SENDERS_MAX", "WHOLE_MAX"]

#: Bytes of all messages that are not whole yet; one message has 16 MiB at most.
WHOLE_MAX = 64 << 20
#: Senders whose message is not whole; of four times as many it is known which message came last.
SENDERS_MAX = 4096
_FRAME_COST = 96  #: of one frame that is kept, besides its bytes


class _Begun:
    """A message that is not whole."""

    def __init__(self, frame: Frame) -> None:
        self.number, self.n_frames = frame.number, frame.of
        self.parts: List[bytes] = []
        self.cost = 0

    def add(self, data: bytes) -> int:
        self.parts.append(data)
        self.cost += len(data) + _FRAME_COST
        return len(data) + _FRAME_COST


class Joiner:
    """Joins the frames of many senders. A sender (one Peer object of the other side) numbers its
    messages from 1 upwards and sends their frames in order, one message behind the other: what
    comes a second time, or behind a later message, is refused.

    Args:
        dropped: called with the beginning of each message that had to make room.
        most: bytes of all messages that are not whole yet. Where there would be more, the longest
            of them is dropped (of equal ones the oldest), and what else comes of it is ignored.
    """

    def __init__(self, dropped: Callable[[bytes], None], most: int = WHOLE_MAX) -> None:
        self._dropped, self._most = dropped, most
        self._open: "OrderedDict[int, _Begun]" = OrderedDict()  # by sender; the oldest first
        self._last: "OrderedDict[int, int]" = OrderedDict()  # by sender: its last message's number
        self.nbytes = 0  #: that are kept

    def add(self, data: bytes) -> Optional[bytes]:
        """The message that this frame completes; None: more are to come, or it was dropped. Raises
        ProtocolError; what its sender had begun is dropped then, without a word to anybody."""
        frame = unpack_frame(data)
        if frame.at == 0:
            self._begin(frame)
            if frame.of == 1:
                return frame.data
        begun = self._open.get(frame.sender)
        if begun is None:
            if self._last.get(frame.sender) == frame.number:
                return None  # the rest of what was dropped
            raise ProtocolError("a frame out of order")
        if (begun.number != frame.number or begun.n_frames != frame.of
                or len(begun.parts) != frame.at):
            self._drop(frame.sender)
            raise ProtocolError("a frame out of order")
        self.nbytes += begun.add(frame.data)
        if len(begun.parts) == begun.n_frames:
            return b"".join(self._drop(frame.sender).parts)
        self._make_room()
        return None

    def _begin(self, frame: Frame) -> None:
        last = self._last.get(frame.sender)
        if last is not None and not 0 < (frame.number - last) & 0xffffffff < 1 << 31:
            raise ProtocolError("a message that came before")
        if frame.sender in self._open:
            self._drop(frame.sender)
        self._last[frame.sender] = frame.number
        self._last.move_to_end(frame.sender)
        if len(self._last) > 4 * SENDERS_MAX:
            self._last.popitem(last=False)
        if frame.of > 1:
            self._open[frame.sender] = _Begun(frame)

    def _make_room(self) -> None:
        while self.nbytes > self._most:
            self._lose(max(self._open, key=lambda sender: self._open[sender].cost))
        if len(self._open) > SENDERS_MAX:  # the oldest has died between two frames
            self._lose(next(iter(self._open)))

    def _lose(self, sender: int) -> None:
        self._dropped(b"".join(self._drop(sender).parts[:32]))

    def _drop(self, sender: int) -> _Begun:
        begun = self._open.pop(sender)
        self.nbytes -= begun.cost
        return begun
