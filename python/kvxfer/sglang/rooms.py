"""Which transfers of a request ("room" in SGLang) are under way, and when it may be called ended.

A room fails for good only when every transfer of it has ended, that is when no byte lands in its
pages or is read from them any more. Until then it is *doomed*: its transfers have been cancelled,
its status stays what it was. Used under the manager's lock.
"""

from typing import Any, Dict, List, NamedTuple, Optional

__all__ = ["Ended", "Room", "Rooms"]


class Room:
    """One room's transfers: an Offer on the prefill side, Expects on the decode side."""

    __slots__ = ("transfers", "left", "cause", "nbytes", "cleared")

    def __init__(self) -> None:
        self.transfers: List[Any] = []
        self.left = 0  #: not ended yet
        self.cause: Optional[str] = None  #: why it fails; None: it does not
        self.nbytes = 0
        self.cleared = False  #: SGLang has forgotten it already

    def doom(self, cause: str) -> None:
        """The first cause counts. Cancels what is under way; does not block."""
        if self.cause is not None:
            return
        self.cause = cause
        for transfer in self.transfers:
            transfer.cancel(cause)


class Ended(NamedTuple):
    """A room whose last transfer has ended."""

    room: int
    cause: Optional[str]  #: None: all went well
    nbytes: int


class Rooms:
    """The rooms of a rank."""

    def __init__(self) -> None:
        self._rooms: Dict[int, Room] = {}

    def __len__(self) -> int:
        return len(self._rooms)

    def ids(self) -> List[int]:
        return list(self._rooms)

    def get(self, room: int) -> Optional[Room]:
        return self._rooms.get(room)

    def live(self, room: int) -> bool:
        """Whether something of the room may still be read or written."""
        state = self._rooms.get(room)
        return state is not None and state.left > 0

    def add(self, room: int, transfer: Any) -> None:
        state = self._rooms.get(room)
        if state is None or not state.left and state.cleared:
            state = self._rooms[room] = Room()
        state.transfers.append(transfer)
        state.left += 1

    def end(self, room: int, failure: Optional[str], nbytes: int) -> Optional[Ended]:
        """One transfer of the room has ended. None while others have not."""
        state = self._rooms.get(room)
        if state is None or not state.left:
            return None
        state.left -= 1
        state.nbytes += nbytes
        if failure is not None:
            state.doom(failure)
        if state.left:
            return None
        if state.cleared:
            del self._rooms[room]
        return Ended(room, state.cause, state.nbytes)

    def clear(self, room: int, cause: str) -> None:
        """SGLang forgets the room. What is still under way is cancelled, and remembered to its
        end."""
        state = self._rooms.get(room)
        if state is None:
            return
        state.cleared = True
        if state.left:
            state.doom(cause)
        else:
            del self._rooms[room]
