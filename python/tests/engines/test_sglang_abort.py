"""A request is given up, in every state and by either side: both sides hear of it, and pages are
given back only when nothing lands in them or is read from them any more."""

import itertools
import time

import pytest

pytest.importorskip("sglang", reason="needs sglang (tests/engines/sglang/install.sh)")

from sglang_harness import (  # noqa: E402, F401
    BOOTSTRAPPING,
    FAILED,
    Model,
    SUCCESS,
    WAITING,
    sglang_engines,
    sglang_ready,
)

rooms_of = itertools.count(5000)
ABORTED = "Aborted by AbortReq."


@pytest.fixture(params=["tp1", "tp2to1", "tp1to2"])
def rooms(request, shared_node, tmp_path, sglang_engines):
    tp = {"tp1": (1, 1), "tp2to1": (2, 1), "tp1to2": (1, 2)}[request.param]
    return sglang_engines(
        shared_node,
        tmp_path,
        Model("mha", tokens=1024),
        prefill={"tp": tp[0]},
        decode={"tp": tp[1]},
    )


@pytest.fixture
def one(shared_node, tmp_path, sglang_engines):
    return sglang_engines(shared_node, tmp_path, Model("mha", tokens=1024))


def causes(engine, room):
    engine.wait(room, FAILED)
    return engine.all("failure", room)


def settle(engine, room):
    """As SGLang: pages go back when the manager says that it is safe. Returns them."""
    end = time.monotonic() + 20
    while not all(engine.all("safe", room)):
        assert time.monotonic() < end, "pages were never given back"
        time.sleep(0.001)
    return engine.all("release", room)


def nothing_left(rooms):
    end = time.monotonic() + 10
    while True:
        left = rooms.prefill.all("counts") + rooms.decode.all("counts")
        if not any(any(counts.values()) for counts in left):
            return
        assert time.monotonic() < end, left
        time.sleep(0.01)


def end(rooms, room):
    """Both sides have failed and say why; pages are given back, and nobody writes into them."""
    said = causes(rooms.prefill, room), causes(rooms.decode, room)
    pages = settle(rooms.decode, room)
    rooms.prefill.all("release", room)
    time.sleep(0.05)
    for rank, mine in zip(rooms.decode.ranks, pages):
        if mine:
            assert rank.touched(mine) == 0
    nothing_left(rooms)
    rooms.run(next(rooms_of), 37, chunks=2)  # the ranks go on
    return said


def test_decode_aborts_before_it_has_pages(rooms):
    room = next(rooms_of)
    rooms.open(room, 37, metadata=False)
    rooms.decode.all("abort", room)
    prefill, decode = end(rooms, room)
    assert all(ABORTED in text for text in prefill + decode)


def test_prefill_aborts_before_decode_has_pages(rooms):
    room = next(rooms_of)
    rooms.open(room, 37, metadata=False)
    rooms.prefill.all("abort", room)
    rooms.decode.all("ask", room, 37)
    prefill, decode = end(rooms, room)
    assert all(ABORTED in text for text in prefill + decode)


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_abort_while_prefill_computes(rooms, side):
    room = next(rooms_of)
    rooms.open(room, 37)
    getattr(rooms, side).all("abort", room)
    prefill, decode = end(rooms, room)
    assert all(ABORTED in text for text in prefill + decode)


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("after", [0.0, 0.002])
def test_abort_between_chunks(rooms, side, after):
    room = next(rooms_of)
    rooms.open(room, 400)
    rooms.prefill.all("begin", room, 400)
    for i in range(3):
        rooms.prefill.all("chunk", room, i, 8)
    time.sleep(after)
    getattr(rooms, side).all("abort", room)
    if side == "prefill":  # SGLang does not ask for this one again: abort() was the end of it
        assert not any(any(counts.values()) for counts in rooms.prefill.all("counts"))
    prefill, decode = end(rooms, room)
    assert all(ABORTED in text for text in decode)
    assert side == "prefill" or all(ABORTED in text for text in prefill)


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_abort_behind_the_last_chunk(rooms, side):
    """Success may have been first; then both sides succeed or the aborting one alone gives up."""
    for _ in range(5):
        room = next(rooms_of)
        rooms.open(room, 400)
        rooms.prefill.all("begin", room, 400)
        rooms.prefill.all("chunk", room, 0, 1)
        getattr(rooms, side).all("abort", room)
        rooms.prefill.wait(room, FAILED, SUCCESS)
        rooms.decode.wait(room, FAILED, SUCCESS)
        for engine in (rooms.prefill, rooms.decode):
            for rank in engine.ranks:
                if rank.poll(room) == FAILED:
                    rank.failure(room)
                    assert engine is rooms.prefill or rank.safe(room)
                    rank.release(room)
                else:
                    rank.clear(room)
    nothing_left(rooms)


def test_both_sides_abort(rooms):
    room = next(rooms_of)
    rooms.open(room, 400)
    rooms.prefill.all("begin", room, 400)
    rooms.prefill.all("chunk", room, 0, 4)
    for rank in rooms.prefill.ranks + rooms.decode.ranks:
        rank.send("abort", room)
    for rank in rooms.prefill.ranks + rooms.decode.ranks:
        rank._answer(30)
    end(rooms, room)


def test_one_rank_of_decode_fails(shared_node, tmp_path, sglang_engines):
    """SGLang then asks all ranks for their exceptions at once, before the others have ended."""
    rooms = sglang_engines(shared_node, tmp_path, Model("mha", tokens=1024), decode={"tp": 2})
    room = next(rooms_of)
    rooms.open(room, 400)
    rooms.prefill.all("begin", room, 400)
    rooms.prefill.all("chunk", room, 0, 4)
    rooms.decode.ranks[0].abort(room)
    texts = [rank.failure(room) for rank in rooms.decode.ranks]
    assert ABORTED in texts[0]
    pages = settle(rooms.decode, room)
    assert all(ABORTED in text or "another rank" in text for text in causes(rooms.prefill, room))
    rooms.prefill.all("release", room)
    time.sleep(0.05)
    assert [rank.touched(mine) for rank, mine in zip(rooms.decode.ranks, pages)] == [0, 0]
    nothing_left(rooms)


def test_abort_is_told_once_and_the_first_cause_stays(one):
    room = next(rooms_of)
    one.open(room, 37)
    one.decode.all("abort", room)
    one.decode.all("abort", room)
    one.prefill.wait(room, FAILED)
    one.prefill.all("abort", room)
    prefill, decode = end(one, room)
    assert ABORTED in prefill[0] and ABORTED in decode[0]


def test_decode_lets_go_without_a_word(one):
    """clear() of a receiver whose transfer is under way."""
    room = next(rooms_of)
    one.open(room, 400)
    one.prefill.all("begin", room, 400)
    one.prefill.all("chunk", room, 0, 4)
    one.decode.all("call_receiver", room, "clear")
    assert "dropped by this engine" in causes(one.prefill, room)[0]
    settle(one.decode, room)
    one.prefill.all("release", room)
    nothing_left(one)


def test_room_is_aborted_and_used_again(one):
    room = next(rooms_of)
    one.open(room, 37)
    one.prefill.all("abort", room)
    end(one, room)
    one.run(room, 37)


def test_bootstrapping_has_an_end(shared_node, tmp_path, sglang_engines):
    rooms = sglang_engines(
        shared_node,
        tmp_path,
        Model("mha"),
        prefill={"env": {"SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "1"}},
    )
    room = next(rooms_of)
    rooms.prefill.all("open", room, rooms.address)
    assert rooms.prefill.all("poll", room) == [BOOTSTRAPPING]
    text = causes(rooms.prefill, room)[0]
    assert "timed out after 1." in text and "KVPoll.Bootstrapping" in text
    rooms.prefill.all("release", room)
    nothing_left(rooms)


def test_waiting_has_an_end(shared_node, tmp_path, sglang_engines):
    """Prefill has the request and computes for too long."""
    rooms = sglang_engines(
        shared_node,
        tmp_path,
        Model("mha"),
        decode={"env": {"SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "1"}},
    )
    room = next(rooms_of)
    rooms.open(room, 37)
    assert rooms.decode.all("poll", room) == [WAITING]
    prefill, decode = end(rooms, room)
    assert "timed out after 1." in decode[0] and "KVPoll.WaitingForInput" in decode[0]
    assert "DEADLINE" in prefill[0]


def test_prefill_that_never_hears_of_the_request(shared_node, tmp_path, sglang_engines):
    rooms = sglang_engines(
        shared_node,
        tmp_path,
        Model("mha"),
        decode={"env": {"SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "1"}},
    )
    room = next(rooms_of)
    rooms.decode.all("open", room, rooms.address)
    rooms.decode.all("ask", room, 37)
    assert "timed out after 1." in causes(rooms.decode, room)[0]
    settle(rooms.decode, room)
    nothing_left(rooms)
