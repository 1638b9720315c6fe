"""What kvxfer.pd says of requests, peers and itself: paths, counters, labels, and on both sides
what was wrong."""

import logging
import time

import pytest
from pd_ranks import TestRank, check_ok, outcome, until, write

from kvxfer import errors, pd


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
        TestRank(shared_node, "twin", timeout=2)
    first.close()
    TestRank(shared_node, "twin").close()


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
