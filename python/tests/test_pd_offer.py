"""Offers of kvxfer.pd whose blocks are not simply added: some wait for a GPU's event, some are
taken back when the request is preempted."""

import time

import pytest
from pd_ranks import outcome

from kvxfer import errors


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
