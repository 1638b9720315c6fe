"""A process, a daemon or the prefill's bootstrap server dies: the other side hears of it, says why,
and goes on."""

import itertools
import time

import pytest

pytest.importorskip("sglang", reason="needs sglang (tests/engines/sglang/install.sh)")

from sglang_harness import (  # noqa: E402, F401
    FAILED,
    Model,
    WAITING,
    free_port,
    sglang_engines,
    sglang_ready,
)
from test_sglang_abort import causes, nothing_left, settle  # noqa: E402

rooms_of = itertools.count(7000)
BOUND_S = 10.0
MODEL = dict(kind="mha", tokens=1024)


@pytest.fixture
def nodes(shared_node):
    """Two that keep their addresses when they are started again, as a node's does."""
    made = [type(shared_node)(f"peer.listen=127.0.0.1:{free_port()}") for _ in range(2)]
    yield made
    for one in made:
        one.stop()


def half_sent(rooms):
    """A room of which some chunks are under way."""
    room = next(rooms_of)
    rooms.open(room, 400)
    rooms.prefill.all("begin", room, 400)
    for i in range(3):
        rooms.prefill.all("chunk", room, i, 8)
    return room


def fails_within(engine, room, seconds=BOUND_S):
    start = time.monotonic()
    engine.wait(room, FAILED, timeout=seconds)
    took = time.monotonic() - start
    print(f"{engine.mode} told after {took:.3f} s")
    return engine.all("failure", room)


@pytest.mark.parametrize("tp", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("same_node", [True, False])
def test_prefill_is_killed(nodes, tmp_path, sglang_engines, tp, same_node):
    rooms = sglang_engines(
        None,
        tmp_path,
        Model(**MODEL),
        prefill={"tp": tp[0], "nodes": [nodes[0]] * tp[0]},
        decode={"tp": tp[1], "nodes": [nodes[0 if same_node else 1]] * tp[1]},
    )
    room, waiting = half_sent(rooms), next(rooms_of)
    rooms.open(waiting, 37)
    for rank in rooms.prefill.ranks:
        rank.kill()
    for one in (room, waiting):
        assert all(
            "CLIENT_LOST" in text or "PEER" in text or "another rank" in text
            for text in fails_within(rooms.decode, one)
        )
        for mine, rank in zip(settle(rooms.decode, one), rooms.decode.ranks):
            time.sleep(0.02)
            assert rank.touched(mine) == 0
    assert not any(counts["open"] for counts in rooms.decode.all("counts"))


@pytest.mark.parametrize("tp", [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("same_node", [True, False])
def test_decode_is_killed(nodes, tmp_path, sglang_engines, tp, same_node):
    rooms = sglang_engines(
        None,
        tmp_path,
        Model(**MODEL),
        prefill={"tp": tp[0], "nodes": [nodes[0]] * tp[0]},
        decode={"tp": tp[1], "nodes": [nodes[0 if same_node else 1]] * tp[1]},
    )
    room, waiting = half_sent(rooms), next(rooms_of)
    rooms.open(waiting, 37)
    for rank in rooms.decode.ranks:
        rank.kill()
    for one in (room, waiting):
        texts = fails_within(rooms.prefill, one)
        assert all("LOST" in text or "REGION" in text for text in texts), texts
        rooms.prefill.all("release", one)
    other = sglang_engines(
        nodes[1], tmp_path, Model(**MODEL)
    )  # prefill goes on with another engine
    other.prefill.stop()
    other.prefill = rooms.prefill
    other.run(next(rooms_of), 37, chunks=2)
    nothing_left(other)


@pytest.mark.parametrize("victim", [0, 1])
def test_daemon_is_killed_and_comes_back(nodes, tmp_path, sglang_engines, victim):
    rooms = sglang_engines(
        None, tmp_path, Model(**MODEL), prefill={"nodes": [nodes[0]]}, decode={"nodes": [nodes[1]]}
    )
    room = half_sent(rooms)
    nodes[victim].kill()
    said = [fails_within(rooms.prefill, room), fails_within(rooms.decode, room)]
    assert all("LOST" in text for texts in said for text in texts), said
    pages = settle(rooms.decode, room)
    rooms.prefill.all("release", room)
    assert rooms.decode.ranks[0].touched(pages[0]) == 0
    nodes[victim].start()
    end = time.monotonic() + 30
    while True:  # both find each other again
        again = next(rooms_of)
        try:
            rooms.run(again, 37)
            break
        except AssertionError:
            assert time.monotonic() < end
            for engine in (rooms.prefill, rooms.decode):
                engine.all("abort", again)
                engine.wait(again, FAILED)
                engine.all("failure", again)
            settle(rooms.decode, again)
            rooms.prefill.all("release", again)
    nothing_left(rooms)


def test_dead_prefill_node_fails_its_rooms(nodes, tmp_path, sglang_engines):
    """The heartbeat: the bootstrap server does not answer, though the ranks still live."""
    rooms = sglang_engines(
        None, tmp_path, Model(**MODEL), prefill={"nodes": [nodes[0]]}, decode={"nodes": [nodes[1]]}
    )
    room = next(rooms_of)
    rooms.open(room, 37)
    rooms.prefill.all("stop_bootstrap")
    text = fails_within(rooms.decode, room, 20)[0]
    assert f"Lost connection with prefill instance (bootstrap_addr: {rooms.address})" in text
    settle(rooms.decode, room)
    assert "Lost connection" in causes(rooms.prefill, room)[0]
    rooms.prefill.all("release", room)
    nothing_left(rooms)


def test_prefill_is_not_there_any_more(nodes, tmp_path, sglang_engines):
    """Decode knows its address, but nobody is published there."""
    rooms = sglang_engines(
        None,
        tmp_path,
        Model(**MODEL),
        prefill={"nodes": [nodes[0]]},
        decode={"nodes": [nodes[1]], "env": {"KVXFER_SGLANG_PATIENCE": "1"}},
    )
    room = next(rooms_of)
    rooms.decode.all("open", room, rooms.address)
    rooms.decode.wait(room, WAITING)
    rooms.prefill.ranks[0].kill()
    rooms.decode.all("ask", room, 37)
    assert "NOT_FOUND" in fails_within(rooms.decode, room)[0]
    settle(rooms.decode, room)


def test_without_a_daemon_the_engine_does_not_start(tmp_path, sglang_engines, nodes):
    nodes[0].kill()
    with pytest.raises(Exception, match="kvxferd"):
        sglang_engines(nodes[0], tmp_path, Model(**MODEL))
