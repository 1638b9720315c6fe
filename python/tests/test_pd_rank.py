"""kvxfer.pd on real daemons: requests in every order, with every split of heads and layers."""

import itertools
import random
import time

import numpy as np
import pytest
from pd_ranks import check_ok, groups, outcome, outcomes, write

from kvxfer import errors, pd

ORDERS = ["expect first", "expect between", "expect before seal", "expect last"]


@pytest.mark.parametrize("order", ORDERS)
def test_write_streamed_in_every_order(engines, order):
    prefill, decode = engines()
    src, dst = [3, 60, 7, 9, 11, 1], [5, 2, 40, 41, 42, 0]
    for i, (chunk, by_layer) in enumerate(itertools.product((None, 2), (False, True))):
        write(prefill, decode, f"r{i}", i, src, dst, order=order, chunk=chunk, by_layer=by_layer)
        check_ok(prefill, "offer", f"r{i}")
        check_ok(decode, "expect", f"r{i}")
        assert decode.ranks[0].has(i, dst)


@pytest.mark.parametrize("src_tp, dst_tp", [(1, 2), (2, 1), (2, 4), (4, 2), (4, 4)])
@pytest.mark.parametrize("order", ["NHD", "HND"])
def test_write_between_other_numbers_of_ranks(engines, src_tp, dst_tp, order):
    prefill, decode = engines({"tp_size": src_tp}, {"tp_size": dst_tp}, order=order)
    write(prefill, decode, "r", 7, [4, 5, 6], [9, 1, 30])
    check_ok(prefill, "offer", "r")
    check_ok(decode, "expect", "r")
    assert all(rank.has(7, [9, 1, 30]) for rank in decode.ranks)


@pytest.mark.parametrize("src_pp, dst_pp", [(2, 1), (1, 2), (2, 4), (4, 2)])
def test_write_between_other_numbers_of_stages(engines, src_pp, dst_pp):
    prefill, decode = engines({"pp_size": src_pp, "tp_size": 2}, {"pp_size": dst_pp})
    write(prefill, decode, "r", 8, [4, 5, 6], [9, 1, 30], order="expect last")
    check_ok(prefill, "offer", "r")
    check_ok(decode, "expect", "r")
    assert all(rank.has(8, [9, 1, 30]) for rank in decode.ranks)


@pytest.mark.parametrize("src_tp, dst_tp", [(1, 1), (1, 2), (2, 1), (4, 2)])
@pytest.mark.parametrize("fetch_first", [False, True])
def test_read(engines, src_tp, dst_tp, fetch_first):
    prefill, decode = engines({"tp_size": src_tp}, {"tp_size": dst_tp})
    src, dst = [3, 60, 7], [5, 2, 40]

    def hold():
        for rank in prefill.ranks:
            rank.fill(3, src)
            rank.rank.hold("r", {0: (0, src)}, deadline=20)

    def fetch():
        for rank in decode.ranks:
            rank.rank.fetch("r", prefill.endpoint, {0: (0, dst)}, deadline=20)

    for call in (fetch, hold) if fetch_first else (hold, fetch):
        call()
        time.sleep(0.05 if fetch_first else 0)
    check_ok(prefill, "hold", "r")
    check_ok(decode, "fetch", "r")
    assert all(rank.has(3, dst) for rank in decode.ranks)


@pytest.mark.parametrize("skip", [1, 2])
def test_a_prefix_that_is_there_is_not_moved(engines, skip):
    prefill, decode = engines({"tp_size": 2})
    src, dst = [3, 60, 7], [5, 2, 40]
    write(prefill, decode, "w", 4, src, dst[skip:], skip=skip)
    check_ok(prefill, "offer", "w")
    [one] = [outcome(rank) for rank in decode.ranks]
    assert one.ok and one.nbytes == decode.ranks[0].kv[:, :, :1].nbytes * (3 - skip)
    assert decode.ranks[0].has(
        4, dst[skip:], skip) and not decode.ranks[0].kv[:, :, dst[:skip]].any()
    decode.ranks[0].kv[...] = 0
    for rank in prefill.ranks:
        rank.rank.hold("r", {0: (0, src)}, deadline=20)
    decode.ranks[0].rank.fetch("r", prefill.endpoint, {0: (skip, dst[skip:])}, deadline=20)
    check_ok(prefill, "hold", "r")
    check_ok(decode, "fetch", "r")
    assert decode.ranks[0].has(
        4, dst[skip:], skip) and not decode.ranks[0].kv[:, :, dst[:skip]].any()


@pytest.mark.parametrize("src_tokens, dst_tokens", [(4, 16), (16, 4)])
def test_blocks_of_other_sizes(engines, src_tokens, dst_tokens):
    prefill, decode = engines({"tokens": src_tokens, "tp_size": 2}, {"tokens": dst_tokens})
    n_tokens = 40
    n_src, n_dst = -(-n_tokens // src_tokens), -(-n_tokens // dst_tokens)
    rng = np.random.default_rng(1)
    whole = rng.integers(1, 2**16, (4, 2, n_tokens, 4, 8), dtype=np.uint16)
    src, dst = rng.permutation(64)[:n_src], rng.permutation(64)[:n_dst]
    for tp, rank in enumerate(prefill.ranks):
        for token in range(n_tokens):
            rank.kv[:, :, src[token // src_tokens], token % src_tokens] = \
                whole[:, :, token, 2 * tp:2 * tp + 2]
        one = rank.rank.offer("w", deadline=20)
        one.add(0, 0, src)
        one.seal()
        rank.rank.hold("r", {0: (0, src)}, deadline=20)
    sink = decode.ranks[0]
    for kind, call in (("w", sink.rank.expect), ("r", sink.rank.fetch)):
        sink.kv[...] = 0
        call(kind, prefill.endpoint, {0: (0, dst)}, deadline=20, tokens=n_tokens)
        assert outcome(sink).error is None
        for token in range(n_tokens):
            assert np.array_equal(sink.kv[:, :, dst[token // dst_tokens], token % dst_tokens],
                                  whole[:, :, token])


def test_whoever_needs_nothing_says_so_and_everything_ends(engines):
    prefill, decode = engines({"tp_size": 2}, {"tp_size": 2})
    for rank in prefill.ranks:
        one = rank.rank.offer("w", deadline=20)
        one.add(0, 0, [1, 2])
        one.seal()
        rank.rank.hold("r", {0: (0, [1, 2])}, deadline=20)
    for rank in decode.ranks:
        rank.rank.expect("w", prefill.endpoint, {}, deadline=20)
        rank.rank.fetch("r", prefill.endpoint, {0: (0, [])}, deadline=20)
    for rank in prefill.ranks + decode.ranks:
        assert all(one.ok and one.nbytes == 0 for one in outcomes(rank, 2).values())


def test_many_requests_in_random_order(engines):
    """Offers, expects, holds and fetches of 200 requests, interleaved at random."""
    prefill, decode = engines({"tp_size": 2}, n_blocks=512)
    rnd = random.Random(5)
    ids = iter(rnd.sample(range(512), 400)), iter(rnd.sample(range(512), 400))
    calls, blocks = [], {}
    for i in range(200):
        src, dst = ([next(one) for _ in range(2)] for one in ids)
        blocks[f"r{i}"] = i, dst
        for rank in prefill.ranks:
            rank.fill(i, src)
        steps = [lambda i=i, dst=dst: (decode.ranks[0].rank.expect if i % 2 else
                                       decode.ranks[0].rank.fetch)(
            f"r{i}", prefill.endpoint, {0: (0, dst)}, deadline=30)]
        for rank in prefill.ranks:
            steps.append(lambda rank=rank, i=i, src=src: give(rank.rank, i, src))
        calls += steps

    def give(rank, i, src):
        if i % 2 == 0:
            rank.hold(f"r{i}", {0: (0, src)}, deadline=30)
            return
        one = rank.offer(f"r{i}", deadline=30)
        for block in (0, 1):
            one.add(0, block, src[block:block + 1])
        one.seal()

    rnd.shuffle(calls)
    for call in calls:
        call()
    for rank in prefill.ranks + decode.ranks:
        assert all(one.error is None for one in outcomes(rank, 200, 60).values())
    for seed, dst in blocks.values():
        assert decode.ranks[0].has(seed, dst)


def test_an_id_may_be_used_again(engines):
    prefill, decode = engines()
    for i in range(3):
        write(prefill, decode, "same", i, [i], [i + 1])
        check_ok(prefill, "offer", "same")
        check_ok(decode, "expect", "same")
        assert decode.ranks[0].has(i, [i + 1])


def test_planes_in_several_memories(shared_node, other_node):
    """Every layer an allocation of its own, as some engines make them."""
    import kvxfer

    ranks = []
    for node, engine in ((shared_node, "many"), (other_node, "few")):
        group = groups()[0]
        shape = (group.n_blocks, group.block_tokens, 4, 8)
        memories = [kvxfer.Memory(2 * 2 * int(np.prod(shape))) for _ in range(4)]
        kv = [memory.numpy("uint16", (2, *shape)) for memory in memories]
        rank = pd.Rank(engine, socket=node.socket)
        one = 2 * int(np.prod(shape[1:]))
        rank.serve(pd.Pool.of([group], {
            (0, layer, part): (memories[layer], kv[layer][part]) if engine == "many" else
            (memories[layer], part * shape[0] * one, one)
            for layer in range(4) for part in (0, 1)}))
        ranks.append((rank, kv))
    (src, src_kv), (dst, dst_kv) = ranks
    for layer in range(4):
        src_kv[layer][...] = np.random.default_rng(layer).integers(0, 2**16, src_kv[layer].shape)
    offer = src.offer("w", deadline=20)
    src.hold("r", {0: (0, [1, 2])}, deadline=20)
    dst.expect("w", pd.Endpoint(src.address, "many"), {0: (0, [3, 4])}, deadline=20)
    dst.fetch("r", pd.Endpoint(src.address, "many"), {0: (0, [5, 6])}, deadline=20)
    for layer in range(4):
        offer.add(0, 0, [1, 2], layers=range(layer, layer + 1))
    offer.seal()
    for rank in (src, dst):
        assert all(one.error is None for one in outcomes(rank, 2).values())
    for layer in range(4):
        assert np.array_equal(dst_kv[layer][:, [3, 4, 5, 6]], src_kv[layer][:, [1, 2, 1, 2]])
    src.close()
    dst.close()


def test_tensors_that_an_engine_has_made_are_moved_into_shared_memory():
    """Two views of one storage and a tensor of its own: content, identity and sharing stay."""
    torch = pytest.importorskip("torch")
    storage = torch.arange(1000, dtype=torch.int32)
    first, second = storage[:600].view(2, 300), storage[500:]
    alone = torch.arange(77, dtype=torch.float64).view(7, 11)[:, 1:]
    before = [tensor.clone() for tensor in (first, second, alone)]
    memory = pd.memory_of([first, second, alone])
    for tensor, old in zip((first, second, alone), before):
        assert torch.equal(tensor, old)
        memory.offset_of(tensor)  # raises where it does not lie in it
    first[1, 250] = -5  # of both views
    assert second[50] == -5
    with pytest.raises(errors.Invalid):
        pd.to_shared([])
