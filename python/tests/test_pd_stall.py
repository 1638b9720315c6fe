"""kvxfer.pd while its daemon stands still (SIGSTOP): calls do not wait for it, and what it did not
take is said later."""

import os
import signal
import threading
import time

import pytest
from pd_ranks import TestRank, outcome, outcomes, until

from kvxfer import errors, pd

AT_ONCE_S = 3  # a call that waited for the daemon would take the rank's timeout


class Still:
    """A daemon that stands still: from ``with`` on, or for some time."""

    def __init__(self, node):
        self.pid = node.process.pid

    def __enter__(self):
        os.kill(self.pid, signal.SIGSTOP)
        return self

    def __exit__(self, *error):
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def ranks(node):
    """Makes ranks of a daemon that the test may stop."""
    made = []

    def make(*names, **more):
        made.extend(TestRank(node, name, **more) for name in names)
        return made[-len(names):]

    yield make
    for rank in made:
        rank.close()


def met(prefill, decode, id="met"):
    """The two have moved something: they know each other."""
    offer = prefill.rank.offer(id, deadline=20)
    decode.rank.expect(id, prefill.endpoint, {0: (0, [0])}, deadline=20)
    offer.add(0, 0, [0])
    offer.seal()
    assert outcome(prefill).ok and outcome(decode).ok


class Stuffed(Still):
    """A daemon that stands still and takes nothing more of a rank: TryAgain for every call. What
    fills the way are messages to a client that does not read them."""

    def __init__(self, node, rank):
        super().__init__(node)
        self.node, self.rank = node, rank

    def __enter__(self):
        client = self.rank.rank._client
        self.sink = self.node.client("sink")
        self.sink.alloc(4096, access="rw", publish="sink")
        self.way = client.find("", "sink")
        until(lambda: self.way.up)
        super().__enter__()
        for n in (4096, 1):
            with self.rank.rank._hub.lock, pytest.raises(errors.TryAgain):
                while True:
                    self.way.post(bytes(n))
        return self

    def __exit__(self, *error):
        super().__exit__()
        until(lambda: not self.way.up)
        self.way.close()
        self.sink.close()


def timed(call, *args, **more):
    start = time.monotonic()
    out = call(*args, **more)
    assert time.monotonic() - start < AT_ONCE_S
    return out


def test_calls_do_not_wait_for_an_import_that_is_being_closed(node, ranks):
    """A peer is lost; its import is closed while the daemon stands still."""
    prefill, other, decode = ranks("prefill", "other", "decode", timeout=10)
    met(prefill, decode)
    met(other, decode, "met other")
    hub = prefill.rank._hub
    waits = prefill.rank.offer("waits", deadline=30)
    decode.rank.expect("waits", prefill.endpoint, {0: (0, [1])}, deadline=30)
    until(lambda: waits.claimed)
    with hub.lock:
        [peer] = hub._peers.values()
        closed, extra = threading.Event(), hub._client.find("", other.rank.name)
        close = extra.close
        extra.close = lambda: (close(), closed.set())
    until(lambda: extra.up)
    prefill.fill(3, [5])
    with Still(node):
        with hub.lock:
            hub.drop([extra])
        time.sleep(0.2)  # it is in it
        assert not closed.is_set()
        timed(waits.add, 0, 0, [5])
        timed(waits.seal)
        timed(prefill.rank.offer("cancelled", deadline=20).cancel)
        timed(prefill.rank.expect, "e", other.endpoint, {0: (0, [9])}, deadline=20)
        timed(prefill.rank.stats)
        timed(prefill.rank.hold, "late", {0: (0, [9])}, deadline=0.3)
        got = outcomes(prefill, 2, 5)  # deadlines are told as ever
        assert {type(one.error) for one in got.values()} == {errors.Cancelled, errors.Deadline}
        assert not closed.is_set()
    assert closed.wait(10)
    assert outcome(decode).ok and outcome(prefill).ok and decode.has(3, [1])
    offer = other.rank.offer("e", deadline=20)  # it was looked for afterwards
    offer.add(0, 0, [2])
    offer.seal()
    assert outcome(prefill).ok and outcome(other).ok


def test_an_import_that_could_not_be_closed_is_closed_later(node, ranks, monkeypatch):
    from kvxfer.pd import closer

    monkeypatch.setattr(closer, "_PAUSE_FIRST_S", 0.05)
    prefill, decode = ranks("prefill", "decode", timeout=1)
    met(prefill, decode)
    hub = prefill.rank._hub
    with hub.lock:
        extra = hub._client.find("", decode.rank.name)
    until(lambda: extra.up)
    with Still(node):
        with hub.lock:
            hub.drop([extra])
        time.sleep(1.4)  # its time is over
        assert not extra.closed
    until(lambda: extra.closed)
    met(prefill, decode, "again")


def test_a_peer_is_looked_for_again_when_the_daemon_did_not_take_the_question(node, ranks):
    """TryAgain, for longer than the patience with a peer."""
    prefill, decode = ranks("prefill", "decode", patience=0.5)
    with Stuffed(node, decode):
        decode.rank.expect("r", prefill.endpoint, {0: (0, [1])}, deadline=60)
        decode.rank.expect("late", prefill.endpoint, {0: (0, [2])}, deadline=0.7)
        time.sleep(1)
        one = outcome(decode)
        assert one.id == "late" and isinstance(one.error, errors.Deadline)
        assert decode.rank.finished() == []
    offer = prefill.rank.offer("r", deadline=20)
    offer.add(0, 0, [1])
    offer.seal()
    assert outcome(decode).ok and outcome(prefill).ok


@pytest.mark.parametrize("end", ["added again", "cancel"])
def test_a_pause_that_the_daemon_did_not_take_is_said_again(node, ranks, end):
    prefill, decode = ranks("prefill", "decode")
    met(prefill, decode)
    offer = prefill.rank.offer("r", deadline=60)
    decode.rank.expect("r", prefill.endpoint, {0: (0, [1, 2])}, deadline=60)
    until(lambda: offer.claimed)
    offer.add(0, 0, [7])
    with Stuffed(node, prefill):
        assert not offer.retract(0.3) and not offer.ended
        if end == "cancel":
            offer.cancel("enough")
            assert prefill.rank.wait(0.3) == []  # what runs has not been cancelled yet
    if end == "cancel":
        for rank in (prefill, decode):
            assert isinstance(outcome(rank).error, errors.Cancelled)
        return
    assert offer.retract(20)
    prefill.fill(4, [10, 11])
    offer.add(0, 0, [10, 11])
    offer.seal()
    assert outcome(decode).ok and outcome(prefill).ok and decode.has(4, [1, 2])


def test_what_the_daemon_does_not_take_is_not_tried_all_the_time(node, ranks):
    prefill, decode = ranks("prefill", "decode")
    met(prefill, decode)
    offer = prefill.rank.offer("r", deadline=60)
    decode.rank.expect("r", prefill.endpoint, {0: (0, [1])}, deadline=60)
    until(lambda: offer.claimed)
    hub, n = prefill.rank._hub, []
    with Stuffed(node, prefill):
        offer.add(0, 0, [7])
        with hub.lock:
            [stream] = hub._blocked
            go = stream.go
            stream.go = lambda: (n.append(1), go())
        begin = time.monotonic()
        time.sleep(1)
        until(lambda: len(n) > 10)
        assert len(n) < 80 * (time.monotonic() - begin)
        offer.seal()
    assert outcome(decode).ok and outcome(prefill).ok


def test_close_does_not_sleep_when_everything_has_ended_and_was_said(node, ranks, monkeypatch):
    """The last that it waits for is that a message is given to the daemon."""
    prefill, decode = ranks("prefill", "decode", timeout=20)
    met(prefill, decode)
    decode.rank.expect("r", prefill.endpoint, {0: (0, [1])}, deadline=60)
    until(lambda: prefill.rank._hub.sources._n_waiting == 1)
    hub = prefill.rank._hub
    with hub.lock:
        [peer] = hub._peers.values()
        post, busy = peer.imports[0].post, [60]

        def later(data):
            if busy[0]:
                busy[0] -= 1
                raise errors.TryAgain("for some time")
            post(data)

        peer.imports[0].post = later
    prefill.rank.offer("r", deadline=60)
    start = time.monotonic()
    prefill.close()
    assert not busy[0] and time.monotonic() - start < 15
    assert isinstance(outcome(decode).error, errors.Cancelled)


def test_close_does_not_wait_for_a_daemon_that_is_away(node, ranks, monkeypatch):
    from kvxfer.pd import thread

    monkeypatch.setattr(thread, "_RECONNECT_FIRST_S", 20)
    monkeypatch.setattr(thread, "_RECONNECT_MOST_S", 20)
    [rank] = ranks("prefill")
    node.kill()
    until(lambda: not rank.rank._hub._alive)
    time.sleep(0.3)
    start = time.monotonic()
    rank.close()
    assert time.monotonic() - start < 5
    node.start()


def test_deadlines_are_told_while_the_daemon_is_away(node, ranks):
    [rank] = ranks("prefill")
    node.kill()
    until(lambda: not rank.rank._hub._alive)
    rank.rank.offer("r", deadline=0.2)
    rank.rank.expect("e", pd.Endpoint("", "nobody"), {0: (0, [1])}, deadline=0.2)
    got = outcomes(rank, 2, 10)
    assert {type(one.error) for one in got.values()} == {errors.Deadline}
    node.start()
