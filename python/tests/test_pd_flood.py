"""kvxfer.pd with far more to say at once than the other side takes: hundreds of long requests, while
the other rank, or its daemon, stands still. All of it waits, and nothing of it is lost."""

import os
import signal
import time

import pytest
from pd_ranks import TestRank, groups, outcome, outcomes, until

from conftest import Node
from kvxfer import pd

N_REQUESTS = 500
N_BLOCKS = 12000  #: of a request: 12 messages of 4 KiB
STILL_S = 1.0
PATIENT = "peer.lost_ms=60s"  #: who stands still is not taken for lost


@pytest.fixture
def node():
    node = Node(PATIENT)
    yield node
    node.stop()


@pytest.fixture
def other_node():
    node = Node(PATIENT)
    yield node
    node.stop()


@pytest.fixture(params=["one node", "two nodes"])
def ranks(request, node, other_node):
    """Prefill, on a daemon that the test may stop, and decode; they know each other."""
    # One block is one piece of memory of 16 bytes in each part.
    kv = [pd.Group("main", ("l0",), 1, N_BLOCKS, (
        pd.Part("k", unit_bytes=16, units=1, first_unit=0, total_units=1, order="NHD"),
        pd.Part("v", unit_bytes=16, units=1, first_unit=0, total_units=1, order="NHD")))]
    prefill = TestRank(node, "prefill", groups_=kv)
    decode = TestRank(node if request.param == "one node" else other_node, "decode", groups_=kv)
    offer = prefill.rank.offer("met", deadline=20)
    decode.rank.expect("met", prefill.endpoint, {0: (0, [0])}, deadline=20)
    offer.add(0, 0, [0])
    offer.seal()
    assert outcome(prefill).ok and outcome(decode).ok
    yield prefill, decode
    decode.close()
    prefill.close()


def flood(prefill, decode):
    """Everything is asked for at once: more posts than may be unconfirmed."""
    blocks = list(range(N_BLOCKS))
    for i in range(N_REQUESTS):
        decode.rank.expect(f"r{i}", prefill.endpoint, {0: (0, blocks)}, deadline=120)


def check_all_came(prefill, decode):
    """Each request has come as it was asked, and ends as its source says."""
    until(lambda: prefill.rank.stats()["messages_in"] >= N_REQUESTS + 1, timeout=60,
          what="the last request")
    assert prefill.rank.stats()["messages_in"] == N_REQUESTS + 1
    for i in range(N_REQUESTS):
        offer = prefill.rank.offer(f"r{i}", deadline=60)
        if i % 50:
            offer.cancel("served enough")
        else:
            offer.add(0, 0, list(range(N_BLOCKS)))
            offer.seal()
    got = outcomes(decode, N_REQUESTS, timeout=60)
    for i in range(N_REQUESTS):
        one = got["expect", f"r{i}"]
        assert one.ok if i % 50 == 0 else "served enough" in str(one.error)
    assert len(outcomes(prefill, N_REQUESTS, timeout=60)) == N_REQUESTS


def test_requests_wait_for_a_rank_that_stands_still(ranks):
    prefill, decode = ranks
    with prefill.rank._hub.lock:  # it reads nothing
        flood(prefill, decode)
        time.sleep(STILL_S)
    check_all_came(prefill, decode)


def test_requests_wait_for_a_daemon_that_stands_still(ranks, node):
    prefill, decode = ranks
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        flood(prefill, decode)
        time.sleep(STILL_S)
    finally:
        os.kill(node.process.pid, signal.SIGCONT)
    check_all_came(prefill, decode)
