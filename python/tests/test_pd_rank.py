"""kvxfer.pd on real daemons: requests in every order, with every split of heads and layers."""

import itertools
import logging
import random
import time

import numpy as np
import pytest
from pd_ranks import Engine, TestRank, groups, outcome, outcomes, until

from conftest import Node
from kvxfer import errors, pd


@pytest.fixture(scope="module")
def other_node():
    node = Node()
    yield node
    node.stop()


@pytest.fixture(params=["one node", "two nodes"])
def nodes(request, shared_node, other_node):
    return (shared_node, shared_node if request.param == "one node" else other_node)


@pytest.fixture
def engines(nodes):
    """Makes pairs of engines and closes them."""
    made = []

    def make(src=None, dst=None, **both):
        pair = []
        for node, name, own in ((nodes[0], "prefill", src), (nodes[1], "decode", dst)):
            pair.append(Engine(node, name, **both, **(own or {})))
            made.append(pair[-1])
        return pair

    yield make
    for engine in made:
        engine.close()


def write(prefill, decode, id, seed, src, dst, *, order="expect first", chunk=None, by_layer=True,
          skip=0, deadline=20):
    """One request in WRITE mode on all ranks."""
    n = len(src)
    for rank in prefill.ranks:
        rank.fill(seed, src)

    def expect():
        for rank in decode.ranks:
            rank.rank.expect(id, prefill.endpoint, {0: (skip, dst)}, deadline=deadline)

    def offer():
        for rank in prefill.ranks:
            offers.append(rank.rank.offer(id, deadline=deadline))

    def add(first, ids):
        for rank, one in zip(prefill.ranks, offers):
            layers = len(rank.groups[0].layers)
            for i in range(layers) if by_layer else (None,):
                one.add(0, first, ids, layers=None if i is None else range(i, i + 1))

    offers = []
    if order == "expect first":
        expect()
    offer()
    at = list(range(0, n, chunk or n))
    for i, first in enumerate(at):
        if order == "expect between" and i == len(at) // 2:
            expect()
        add(first, src[first:first + (chunk or n)])
    if order == "expect before seal":
        expect()
    for one in offers:
        one.seal()
    if order == "expect last":
        expect()


def check_ok(engine, role, id, n=1):
    for rank in engine.ranks:
        one = outcome(rank)
        assert (one.role, one.id, one.error) == (role, id, None) and one.ok
        assert one.blocks == {}


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


# ---- what is said about it


def test_the_path_is_known_and_logged_once_per_peer(engines, nodes, caplog):
    caplog.set_level(logging.INFO, "kvxfer")
    prefill, decode = engines()
    for i in range(3):
        write(prefill, decode, f"r{i}", i, [1], [2])
        check_ok(prefill, "offer", f"r{i}")
        check_ok(decode, "expect", f"r{i}")
    transport = "copy" if nodes[0] is nodes[1] else "fabric"
    assert prefill.ranks[0].rank.paths() == {"decode/dp0/pp0/tp0": transport}
    assert decode.ranks[0].rank.paths() == {"prefill/dp0/pp0/tp0": transport}
    until(lambda: len([r for r in caplog.records if "transport" in r.message]) >= 2)
    lines = sorted(r.message for r in caplog.records if "transport" in r.message)
    assert lines == [f"kvxfer: decode/dp0/pp0/tp0 <- prefill/dp0/pp0/tp0: transport {transport}",
                     f"kvxfer: prefill/dp0/pp0/tp0 -> decode/dp0/pp0/tp0: transport {transport}"]


def test_stats_count_what_happened(engines):
    prefill, decode = engines()
    write(prefill, decode, "r", 1, [1, 2], [3, 4], chunk=1)
    check_ok(prefill, "offer", "r")
    check_ok(decode, "expect", "r")
    nbytes = decode.ranks[0].kv[:, :, :2].nbytes
    out, in_ = prefill.ranks[0].rank.stats(), decode.ranks[0].rank.stats()
    assert (
    out["offers"],
    out["bytes_out"],
    out["transfers"],
    out["messages_in"]) == (
        1,
        nbytes,
        1,
         1)
    assert (
    in_["expects"],
    in_["bytes_in"],
    in_["messages_out"],
    in_["failed"]) == (
        1,
        nbytes,
        1,
         0)
    assert out["open"] == in_["open"] == out["running"] == 0


def test_info_reaches_the_other_side(engines):
    prefill, decode = engines(info={"port": 7, "names": ["a"]})
    one = prefill.ranks[0].rank.offer("r", deadline=20)
    assert not one.claimed and one.infos == ()
    decode.ranks[0].rank.expect("r", prefill.endpoint, {
                                0: (3, [1])}, deadline=20, info=b"\x00prefix\xff")
    until(lambda: one.claimed)
    assert one.infos == (b"\x00prefix\xff",)
    assert decode.ranks[0].rank.peer_info(prefill.endpoint) == {"port": 7, "names": ["a"]}
    one.cancel()
    outcome(prefill.ranks[0]), outcome(decode.ranks[0])


def test_the_label_is_shown(engines, shared_node):
    prefill, decode = engines()
    one = prefill.ranks[0].rank.offer("cmpl-1 \u00e9", deadline=20, label="")
    decode.ranks[0].rank.expect("cmpl-1 \u00e9", prefill.endpoint, {0: (0, [1, 2])}, deadline=20)
    one.add(0, 0, [1])
    with shared_node.client() as client:
        until(lambda: "cmpl-1__" in str(client.query("transfers")))
    one.cancel("enough")
    outcome(prefill.ranks[0]), outcome(decode.ranks[0])


# ---- what is wrong is said


def test_mismatch_is_told_to_both_sides_with_both_values(engines):
    prefill, decode = engines({"total": 4}, {"total": 8})
    offer = prefill.ranks[0].rank.offer("r", deadline=20)
    offer.add(0, 0, [1])
    decode.ranks[0].rank.expect("r", prefill.endpoint, {0: (0, [1])}, deadline=20)
    here, there = outcome(decode.ranks[0]), outcome(prefill.ranks[0])
    assert isinstance(here.error, errors.LayoutMismatch) and "unit 4 of 8" in str(here.error)
    assert isinstance(there.error, errors.LayoutMismatch) and "decode/dp0" in str(there.error)
    assert list(here.blocks[0]) == [1]


def test_another_model_is_refused(engines):
    prefill, decode = engines({"check": {"model": "a"}}, {"check": {"model": "b"}})
    prefill.ranks[0].rank.hold("r", {0: (0, [1])}, deadline=20)
    decode.ranks[0].rank.fetch("r", prefill.endpoint, {0: (0, [1])}, deadline=20)
    for one in (outcome(decode.ranks[0]), outcome(prefill.ranks[0])):
        assert isinstance(one.error, errors.LayoutMismatch) and "model: 'b' here" in str(one.error)


@pytest.mark.parametrize("late", [False, True])
def test_blocks_that_were_never_added_fail_on_both_sides(engines, late):
    prefill, decode = engines({"tp_size": 2})
    write(prefill, decode, "r", 1, [1, 2], [3, 4, 5],
          order="expect last" if late else "expect first")
    for one in [outcome(rank) for rank in prefill.ranks + decode.ranks]:
        assert isinstance(one.error, errors.Invalid)
        assert "wants its blocks 0..2" in str(one.error) and "[(0, 2)]" in str(one.error)


def test_blocks_that_are_not_held_fail_on_both_sides(engines):
    prefill, decode = engines()
    prefill.ranks[0].rank.hold("r", {0: (1, [4, 5])}, deadline=20)
    decode.ranks[0].rank.fetch("r", prefill.endpoint, {0: (0, [1])}, deadline=20)
    for one in (outcome(decode.ranks[0]), outcome(prefill.ranks[0])):
        assert isinstance(
    one.error,
    errors.Invalid) and "but 2 from 1 on are held" in str(
        one.error)


def test_block_ids_out_of_range_fail_on_both_sides(engines):
    prefill, decode = engines()
    write(prefill, decode, "r", 1, [1], [64])
    for one in (outcome(decode.ranks[0]), outcome(prefill.ranks[0])):
        assert isinstance(one.error, errors.OutOfRange)


def test_wrong_arguments_raise_and_change_nothing(engines):
    prefill, decode = engines()
    rank = prefill.ranks[0].rank
    with pd.Rank("idle", socket=prefill.ranks[0].socket) as idle:
        with pytest.raises(errors.Invalid, match="serve"):
            idle.offer("r", deadline=1)
    offer = rank.offer("r", deadline=20)
    for wrong in (lambda: rank.offer("r2", deadline=0), lambda: rank.offer("", deadline=1),
                  lambda: rank.offer("x" * 201, deadline=1), lambda: offer.add(1, 0, [1]),
                  lambda: offer.add(0, -1, [1]), lambda: offer.add(0, 0, [1], layers=range(3, 6)),
                  lambda: offer.add(0, 0, [-1]), lambda: rank.hold("h", {3: (0, [1])}, deadline=1),
                  lambda: rank.expect("e", prefill.endpoint, {}, deadline=1, info=bytes(2000))):
        with pytest.raises(errors.Invalid):
            wrong()
    with pytest.raises(errors.Exists):
        rank.offer("r", deadline=20)
    offer.add(0, 0, [1, 2], layers=range(0, 2))
    offer.add(0, 0, [1, 2], layers=range(2, 4))
    with pytest.raises(errors.Invalid, match="added before"):
        offer.add(0, 1, [9], layers=range(3, 4))
    offer.add(0, 2, [])
    offer.seal()
    with pytest.raises(errors.Invalid, match="sealed"):
        offer.add(0, 2, [9])
    assert rank.stats()["open"] == 1
    offer.cancel("over")
    one = outcome(rank)
    assert isinstance(one.error, errors.Cancelled) and "over" in str(one.error)


def test_what_is_not_there_is_said_after_the_patience(shared_node):
    rank = TestRank(shared_node, "alone", patience=0.3)
    start = time.monotonic()
    rank.rank.expect("r", pd.Endpoint("", "nobody"), {0: (0, [1])}, deadline=20)
    one = outcome(rank)
    assert isinstance(one.error, errors.NotFound) and "nobody/dp0/pp0/tp0" in str(one.error)
    assert 0.1 < time.monotonic() - start < 5
    rank.rank.fetch("r", pd.Endpoint("127.0.0.1:1", "nobody"), {0: (0, [1])}, deadline=20)
    one = outcome(rank)
    assert isinstance(one.error, errors.PeerUnreachable) and "127.0.0.1:1" in str(one.error)
    rank.close()


def test_a_prefill_engine_that_starts_later_is_found(shared_node):
    decode = TestRank(shared_node, "early", patience=20)
    decode.rank.expect("r", pd.Endpoint("", "late"), {0: (0, [1])}, deadline=20)
    time.sleep(0.2)
    prefill = TestRank(shared_node, "late")
    prefill.fill(1, [5])
    offer = prefill.rank.offer("r", deadline=20)
    offer.add(0, 0, [5])
    offer.seal()
    assert outcome(decode).ok and outcome(prefill).ok and decode.has(1, [1])
    prefill.close()
    decode.close()


def test_two_ranks_of_one_name_are_refused(shared_node):
    first = TestRank(shared_node, "twin")
    with pytest.raises(errors.Exists):
        TestRank(shared_node, "twin", timeout=0.2)
    first.close()
    TestRank(shared_node, "twin").close()


# ---- GPU events, preemption


class Later:
    """As an event of a GPU: has it come to pass?"""

    def __init__(self):
        self.set = False

    def query(self):
        return self.set


def test_blocks_are_sent_when_their_event_has_come(engines):
    prefill, decode = engines()
    src, dst = prefill.ranks[0], decode.ranks[0]
    dst.rank.expect("r", prefill.endpoint, {0: (0, [1, 2])}, deadline=20)
    offer = src.rank.offer("r", deadline=20)
    first, second = Later(), Later()
    offer.add(0, 0, [7], after=first)
    offer.add(0, 1, [8], after=second)
    offer.seal()
    time.sleep(0.1)
    assert not dst.rank.finished() and not src.rank.finished()
    src.fill(3, [7, 8])
    second.set = True
    time.sleep(0.05)
    assert not dst.rank.finished()
    first.set = True
    assert outcome(dst).ok and outcome(src).ok and dst.has(3, [1, 2])


def test_an_event_that_fails_ends_the_offer(engines):
    class Broken:
        def query(self):
            if self.first:
                self.first = False
                return False
            raise RuntimeError("device lost")

        first = True

    prefill, decode = engines()
    decode.ranks[0].rank.expect("r", prefill.endpoint, {0: (0, [1])}, deadline=20)
    offer = prefill.ranks[0].rank.offer("r", deadline=20)
    offer.add(0, 0, [7], after=Broken())
    for rank in (prefill.ranks[0], decode.ranks[0]):
        one = outcome(rank)
        assert isinstance(one.error, errors.Internal) and "device lost" in str(one.error)


@pytest.mark.parametrize("asked", [False, True])
def test_a_preempted_request_is_added_again_from_other_blocks(engines, asked):
    prefill, decode = engines({"tp_size": 2})
    sink = decode.ranks[0]
    offers = [rank.rank.offer("r", deadline=20) for rank in prefill.ranks]
    if asked:
        sink.rank.expect("r", prefill.endpoint, {0: (0, [1, 2, 3])}, deadline=20)
    for rank, offer in zip(prefill.ranks, offers):
        rank.fill(1, [10, 11])
        offer.add(0, 0, [10, 11])
        assert offer.retract(10)
        rank.kv[:, :, [10, 11]] = 0xdead
        rank.fill(1, [20, 21, 22])
        offer.add(0, 0, [20, 21])
    if not asked:
        sink.rank.expect("r", prefill.endpoint, {0: (0, [1, 2, 3])}, deadline=20)
    for offer in offers:
        offer.add(0, 2, [22])
        offer.seal()
    for rank in prefill.ranks + [sink]:
        assert outcome(rank).error is None
    assert sink.has(1, [1, 2, 3])


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


def test_a_request_that_is_preempted_behind_its_seal_is_sealed_again(engines):
    prefill, decode = engines()
    offer = prefill.ranks[0].rank.offer("r", deadline=20)
    offer.add(0, 0, [1])
    offer.seal()
    assert offer.retract(10)
    prefill.ranks[0].fill(4, [7, 8])
    offer.add(0, 0, [7, 8])
    decode.ranks[0].rank.expect("r", prefill.endpoint, {0: (0, [2, 3])}, deadline=20)
    assert prefill.ranks[0].rank.wait(0.1) == []
    offer.seal()
    assert outcome(decode.ranks[0]).ok and outcome(prefill.ranks[0]).ok
    assert offer.retract(0) and decode.ranks[0].has(4, [2, 3])


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


def test_garbage_of_another_client_is_counted_and_hurts_nobody(engines, nodes):
    """A client of the same tenant that speaks the protocol badly."""
    from kvxfer.pd import messages

    prefill, decode = engines()
    victim = prefill.ranks[0].rank
    ready = {"id": "r", "token": 5, "life": 1, "from": "a/dp0/pp0/tp0", "at": "", "left": 9,
             "place": [0, 1, 0, 1]}
    ids = [messages.copy_ids([1, 2], "ids")]
    bad = [b"x", b"kvp1" + bytes(16), messages.pack(messages.READY, {}),
           messages.pack(messages.READY, {**ready, "place": ["a"]}),
           messages.pack(messages.READY, {**ready, "place": [0, -1, 0, 1]}),
           messages.pack(messages.READY, {**ready, "wants": [[7, 0, 0, 2, []]]}, ids),
           messages.pack(messages.READY, {**ready, "wants": [[0, 0, 0, 9, []]]}, ids),
           messages.pack(messages.READY, {**ready, "wants": 3}), messages.pack(messages.CANCEL, {}),
           messages.pack(messages.READY, {**ready, "left": "soon"})]
    odd = [messages.pack(messages.FAILED, {"token": "x"}),
           messages.pack(messages.FAILED, {"token": 77, "status": "x"}),
           messages.pack(messages.CANCEL, {**ready, "role": "offer", "status": -1}),
           messages.pack(messages.READY, {**ready, "id": "other",
                                          "wants": [[0, 9, 0, 2, [[[[0, 0, 4]], [[0, 0, 0, 4]]]]]]},
                         ids)]
    with nodes[0].client("stranger") as client:
        found = client.find("", victim.name)
        until(lambda: client.poll() or found.up)
        for i, message in enumerate(bad + odd):
            frames = [message] if i < 2 else messages.frames(99, i, message)
            for frame in frames:
                found.post(frame)
        until(lambda: victim.stats().get("messages_bad", 0) >= len(bad))
    write(prefill, decode, "fine", 1, [1], [2])
    check_ok(prefill, "offer", "fine")
    check_ok(decode, "expect", "fine")
