"""Rooms between prefill and decode ranks of SGLang: every page, head and state arrives, and nothing
else."""

import itertools
import random
import time

import pytest

pytest.importorskip("sglang", reason="needs sglang (tests/engines/sglang/install.sh)")

from sglang_harness import (  # noqa: E402, F401
    BOOTSTRAPPING,
    Model,
    SUCCESS,
    WAITING,
    sglang_engines,
    sglang_ready,
)

GDN = [16, 16, 32]  # q, k, v dims of the convolution
rooms_of = itertools.count(1000)


@pytest.fixture
def pair(shared_node, tmp_path, sglang_engines):
    return lambda model, **options: sglang_engines(shared_node, tmp_path, model, **options)


def run_some(rooms, *sizes):
    """Requests of n tokens in so many chunks, one after the other."""
    for n, chunks in sizes or ((1, 1), (4, 1), (37, 3), (64, 4)):
        rooms.run(next(rooms_of), n, chunks=chunks)


def test_pages_of_one_token(pair):
    run_some(pair(Model("mha", page=1)), (1, 1), (37, 2))


def test_pages_of_several_tokens_in_chunks(pair):
    run_some(pair(Model("mha")))


@pytest.mark.parametrize("prefill, decode", [(1, 2), (2, 1), (4, 2), (2, 4), (4, 1)])
def test_heads_are_shared_out_anew(pair, prefill, decode):
    rooms = pair(Model("mha"), prefill={"tp": prefill}, decode={"tp": decode})
    run_some(rooms, (37, 3), (64, 1))


@pytest.mark.parametrize("prefill, decode", [(4, 1), (1, 4), (4, 2), (4, 4)])
def test_fewer_heads_than_ranks(pair, prefill, decode):
    rooms = pair(Model("mha", heads=2), prefill={"tp": prefill}, decode={"tp": decode})
    run_some(rooms, (37, 3))


@pytest.mark.parametrize("prefill, decode", [(1, 1), (1, 2), (2, 1), (4, 2), (2, 4)])
def test_latents_are_equal_on_all_ranks(pair, prefill, decode):
    """MLA: of several prefill ranks that hold the same one sends, the others are dummies."""
    rooms = pair(Model("mla"), prefill={"tp": prefill}, decode={"tp": decode})
    run_some(rooms, (37, 3), (1, 1))
    moved = sum(stats["bytes_in"] for stats in rooms.decode.all("stats"))
    page = 4 * 3 * 8 * 4 * 3  # tokens, latent, float32, layers
    assert moved >= decode * 11 * page
    assert moved < decode * (11 * page + 8192)  # no latent twice; the rest is metadata


def test_sliding_window(pair):
    rooms = pair(Model("swa"), prefill={"tp": 2}, decode={"tp": 2})
    run_some(rooms, (3, 1), (37, 3), (40, 1))


@pytest.mark.parametrize("prefill, decode", [(1, 2), (2, 1)])
def test_sliding_window_with_heads_shared_out_anew(pair, prefill, decode):
    run_some(pair(Model("swa"), prefill={"tp": prefill}, decode={"tp": decode}), (37, 3))


@pytest.mark.parametrize("prefill, decode", [(1, 1), (2, 2), (1, 2), (2, 1), (4, 2)])
def test_states_of_linear_attention_gdn(pair, prefill, decode):
    model = Model("mamba", layers=4, conv_blocks=GDN)
    run_some(pair(model, prefill={"tp": prefill}, decode={"tp": decode}), (37, 3))


@pytest.mark.parametrize("prefill, decode", [(1, 1), (1, 2), (4, 2)])
def test_states_of_linear_attention_kda(pair, prefill, decode):
    model = Model("mamba", layers=4, kda=True)
    run_some(pair(model, prefill={"tp": prefill}, decode={"tp": decode}), (37, 3))


def test_states_of_mamba2_between_equal_tp(pair):
    rooms = pair(Model("mamba", layers=4), prefill={"tp": 2}, decode={"tp": 2})
    run_some(rooms, (37, 3))


@pytest.mark.parametrize("prefill, decode", [(1, 1), (2, 1), (1, 2)])
def test_sparse_attention_index(pair, prefill, decode):
    model = Model("dsa", page=64, tokens=64 * 12)
    run_some(pair(model, prefill={"tp": prefill}, decode={"tp": decode}), (1, 1), (200, 2))


@pytest.mark.parametrize("prefill, decode", [(1, 1), (2, 1), (1, 2)])
def test_tail_ring_of_sparse_mla_with_linear_attention(pair, prefill, decode):
    """States are shared out anew, latents and index are on every rank."""
    model = Model("dsa_tail", page=128, tokens=128 * 8, layers=4, conv_blocks=GDN)
    run_some(
        pair(model, prefill={"tp": prefill}, decode={"tp": decode}), (200, 1), (201, 2), (1, 1)
    )


def test_draft_model_on_both_sides(pair):
    run_some(pair(Model("mha", draft_layers=2)), (37, 2))


def test_draft_model_on_the_decode_side_only(pair):
    rooms = pair(Model("mha"), decode_model=Model("mha", draft_layers=1))
    room = next(rooms_of)
    rooms.open(room, 12)
    rooms.prefill.all("begin", room, 12)
    rooms.prefill.all("chunk", room, 0, 1)
    rooms.prefill.wait(room, SUCCESS)
    rooms.decode.wait(room, SUCCESS)  # and the draft's pages are as they were


@pytest.mark.parametrize("tp", [(1, 1), (2, 1), (1, 2)])
def test_prefix_that_decode_holds_already(pair, tp):
    rooms = pair(Model("mha"), prefill={"tp": tp[0]}, decode={"tp": tp[1]})
    rooms.run(next(rooms_of), 37, prefix=16, chunks=2)


def test_prefix_is_told_to_dummy_ranks(pair):
    rooms = pair(Model("mla"), prefill={"tp": 4}, decode={"tp": 1})
    room = next(rooms_of)
    rooms.open(room, 37, prefix=16)
    assert rooms.prefill.all("begin", room, 37) == [16] * 4
    rooms.prefill.all("chunk", room, 0, 1)
    rooms.prefill.wait(room, SUCCESS)
    rooms.decode.wait(room, SUCCESS)
    rooms.decode.all("check", room)


def test_whole_prompt_is_held_already(pair):
    """Nothing but metadata is wanted."""
    pair(Model("mha")).run(next(rooms_of), 16, prefix=16)


def test_states_of_a_room_in_order(pair):
    rooms = pair(Model("mha"))
    room = next(rooms_of)
    rooms.open(room, 37, metadata=False)
    assert rooms.prefill.all("poll", room) == [BOOTSTRAPPING]
    rooms.decode.all("ask", room, 37)
    rooms.prefill.wait(room, WAITING)
    assert rooms.decode.all("poll", room) == [WAITING]
    rooms.prefill.all("begin", room, 37)
    rooms.prefill.all("chunk", room, 0, 2)
    assert rooms.prefill.all("poll", room) == [3]
    rooms.prefill.all("chunk", room, 1, 2)
    rooms.prefill.wait(room, SUCCESS)
    rooms.decode.wait(room, SUCCESS)


def test_decode_asks_before_prefill_knows_the_request(pair):
    rooms = pair(Model("mha"))
    room = next(rooms_of)
    rooms.decode.all("open", room, rooms.address)
    rooms.decode.all("ask", room, 20)
    rooms.prefill.all("open", room, rooms.address)
    rooms.prefill.wait(room, WAITING)
    rooms.prefill.all("begin", room, 20)
    rooms.prefill.all("chunk", room, 0, 1)
    rooms.decode.wait(room, SUCCESS)
    rooms.decode.all("check", room)


def test_room_is_used_again(pair):
    """As SGLang does when it computes a retracted request anew."""
    rooms = pair(Model("mha"))
    room = next(rooms_of)
    rooms.run(room, 20)
    rooms.run(room, 28)


def test_many_rooms_at_once(pair):
    rooms = pair(Model("mha", tokens=2048), prefill={"tp": 2}, decode={"tp": 1})
    order = random.Random(5)
    ids = [next(rooms_of) for _ in range(16)]
    for room in ids:
        rooms.open(room, 20 + room % 30)
        rooms.prefill.all("begin", room, 20 + room % 30)
    steps = [(room, i) for room in ids for i in range(3)]
    order.shuffle(steps)
    done = dict.fromkeys(ids, 0)
    for room, _ in steps:
        rooms.prefill.all("chunk", room, done[room], 3)
        done[room] += 1
    for room in ids:
        rooms.prefill.wait(room, SUCCESS)
        rooms.decode.wait(room, SUCCESS)
        rooms.decode.all("check", room)


@pytest.mark.parametrize("kind, tp", [("mha", 1), ("mla", 1), ("mha", 2)])
def test_pipeline_stages_to_one(pair, kind, tp):
    """Layers are matched by name, metadata come from the last stage."""
    rooms = pair(Model(kind, layers=4), prefill={"pp": 2, "tp": tp})
    run_some(rooms, (37, 3), (1, 1))


def test_stages_agree_before_the_first_one_begins(pair):
    """Nobody polls the senders of later stages while they bootstrap."""
    rooms = pair(Model("mha", layers=4), prefill={"pp": 2})
    room = next(rooms_of)
    rooms.prefill.all("open", room, rooms.address)
    rooms.decode.all("open", room, rooms.address)
    first = rooms.prefill.ranks[0]
    assert first.consensus(room) == BOOTSTRAPPING
    rooms.decode.all("ask", room, 37)
    end = time.monotonic() + 20
    while first.consensus(room) != WAITING:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_two_nodes(node, shared_node, tmp_path, sglang_engines):
    rooms = sglang_engines(
        None,
        tmp_path,
        Model("mha"),
        prefill={"tp": 2, "nodes": [node, shared_node]},
        decode={"tp": 2, "nodes": [shared_node, node]},
    )
    run_some(rooms, (37, 2))
    used = [set(paths.values()) for paths in rooms.decode.all("paths")]
    assert all(used) and set.union(*used) <= {"copy", "fabric"}
