"""When a room may be called ended."""

import pytest

pytest.importorskip("torch", reason="kvxfer.sglang needs torch")

from kvxfer.sglang.rooms import Ended, Rooms  # noqa: E402


class Transfer:
    def __init__(self):
        self.cancelled = []

    def cancel(self, cause):
        self.cancelled.append(cause)


def test_room_ends_with_its_last_transfer():
    rooms = Rooms()
    rooms.add(1, Transfer())
    rooms.add(1, Transfer())
    assert rooms.live(1) and rooms.end(1, None, 10) is None and rooms.live(1)
    assert rooms.end(1, None, 5) == Ended(1, None, 15) and not rooms.live(1)


def test_failure_of_one_cancels_the_others_and_the_first_cause_stays():
    rooms = Rooms()
    one, other = Transfer(), Transfer()
    rooms.add(1, one)
    rooms.add(1, other)
    assert rooms.end(1, "first", 0) is None and other.cancelled == ["first"]
    assert rooms.end(1, "second", 0) == Ended(1, "first", 0)


def test_doomed_room_fails_even_if_everything_arrived():
    rooms = Rooms()
    rooms.add(1, Transfer())
    rooms.get(1).doom("aborted")
    assert rooms.end(1, None, 7) == Ended(1, "aborted", 7)


def test_cleared_room_is_remembered_to_its_end():
    rooms = Rooms()
    transfer = Transfer()
    rooms.add(1, transfer)
    rooms.clear(1, "dropped")
    assert transfer.cancelled == ["dropped"] and rooms.live(1) and len(rooms) == 1
    rooms.end(1, "cancelled", 0)
    assert not rooms.live(1) and len(rooms) == 0


def test_room_can_be_used_again():
    rooms = Rooms()
    rooms.add(1, Transfer())
    rooms.end(1, None, 0)
    rooms.clear(1, "")
    assert len(rooms) == 0
    rooms.add(1, Transfer())
    assert rooms.live(1) and rooms.get(1).cause is None


def test_ends_of_unknown_rooms_are_nothing():
    assert Rooms().end(5, None, 0) is None
