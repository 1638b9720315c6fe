"""kvxfer.vllm_omni: the owner's books, without processes: what is pinned stays."""

import logging
import time

import pytest

from kvxfer.vllm_omni import store, wire

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

LOG = logging.getLogger("test")


class Book:
    """A store, with the keys whose memory was given back."""

    def __init__(self):
        self.store = store.Store(LOG)
        self.freed = []

    def put(self, key="k@0_1", size=10, owner="me", ttl=100.0, plain=None):
        entry = store.Entry(key, plain or key.split("@")[0], owner, size, True, offset=4096,
                            free=lambda: self.freed.append(entry.put))
        return entry, self.store.add(entry, ttl)

    def claim(self, id_, key="k@0_1", peer="A", expected=-1):
        (to, answer), = self.store.claim(peer, wire.Claim(id_, expected, key, "pool", ""))
        assert to == peer
        return answer


    def fetched(self, put, claim, nbytes=10):
        """The READ's end, told by the daemon and then by the getter."""
        assert self.store.arrival(put, claim, nbytes, None) == []
        return self.store.done(put, claim, True)


@pytest.fixture
def book():
    return Book()


def test_claim_of_what_is_there_is_granted(book):
    entry, _ = book.put()
    assert book.claim(1) == wire.Grant(1, entry.put, 10, 4096, True, None)


def test_claim_before_put_waits_and_is_granted_by_put(book):
    assert book.claim(1) == wire.Wait(1, False)
    entry, sends = book.put()
    assert sends == [("A", wire.Grant(1, entry.put, 10, 4096, True, None))]


def test_end_of_the_read_frees(book):
    entry, _ = book.put()
    book.claim(1)
    book.fetched(entry.put, 1)
    assert book.freed == [entry.put]
    assert book.claim(2) == wire.Wait(2, False)


def test_read_that_the_getter_was_not_told_of_is_not_the_end(book):
    """The daemon died between the two: the getter asks again, and finds it."""
    entry, _ = book.put()
    book.claim(1)
    book.store.arrival(entry.put, 1, 10, None)
    book.store.peer_lost(None)
    assert book.freed == []
    assert isinstance(book.claim(2), wire.Grant)


def test_failed_arrival_keeps_it_for_the_next(book):
    entry, _ = book.put()
    book.claim(1)
    book.store.arrival(entry.put, 1, 0, RuntimeError("link down"))
    assert book.freed == []
    assert isinstance(book.claim(2), wire.Grant)


def test_arrival_of_fewer_bytes_keeps_it(book):
    entry, _ = book.put(size=10)
    book.claim(1)
    book.store.arrival(entry.put, 1, 9, None)
    assert book.freed == []


def test_pinned_does_not_expire(book):
    entry, _ = book.put(ttl=0.0)
    book.claim(1)
    book.store.expire(time.monotonic() + 1000)
    assert book.freed == []
    book.fetched(entry.put, 1)
    assert book.freed == [entry.put]


def test_free_expires(book):
    entry, _ = book.put(ttl=0.0)
    book.store.expire(time.monotonic() + 1)
    assert book.freed == [entry.put]
    assert book.store.stats()["expired"] == 1


def test_put_of_the_same_key_waits_for_the_pin(book):
    old, _ = book.put()
    book.claim(1)
    new, _ = book.put(size=20)
    assert book.freed == []
    book.fetched(old.put, 1)
    assert book.freed == [old.put]
    assert book.claim(2).put == new.put


def test_cleanup_of_pinned_waits_for_the_pin(book):
    entry, _ = book.put()
    book.claim(1)
    assert book.store.remove("k", "me") == 1
    assert book.freed == []
    book.store.arrival(entry.put, 1, 0, RuntimeError("failed"))
    assert book.freed == [entry.put]


def test_cleanup_by_key_with_stages_leaves_other_edges(book):
    first, _ = book.put("k@0_1")
    book.put("k@0_2")
    book.store.remove("k@0_1", "me")
    assert book.freed == [first.put]


def test_second_getter_waits_and_gets_what_the_first_gave_back(book):
    entry, _ = book.put()
    book.claim(1)
    assert book.claim(2, peer="B") == wire.Wait(2, True)
    assert book.store.done(entry.put, 1, False) == [
        ("B", wire.Grant(2, entry.put, 10, 4096, True, None))]


def test_lost_getter_ends_its_pins_and_claims(book):
    entry, _ = book.put()
    book.claim(1)
    book.claim(5, key="other@0_1")
    assert book.store.peer_lost("A") == []
    assert book.store.stats() == {"waiting_for_getter": 1, "pinned": 0, "claims_waiting": 0,
                                  "expired": 0}
    assert isinstance(book.claim(2, peer="B"), wire.Grant)


def test_late_arrival_of_a_lost_getter_changes_nothing(book):
    entry, _ = book.put()
    book.claim(1)
    book.store.peer_lost("A")
    book.claim(2, peer="B")
    book.fetched(entry.put, 1)
    assert book.freed == [] and book.store.stats()["pinned"] == 1


def test_abandoned_claim_is_not_granted(book):
    book.claim(1)
    book.store.abandon(1)
    _, sends = book.put()
    assert sends == []


def test_abandon_that_crossed_a_grant_gives_it_back(book):
    book.claim(1)
    entry, _ = book.put()
    book.store.abandon(1)
    assert isinstance(book.claim(2), wire.Grant) and book.freed == []


def test_wrong_size_is_refused_with_both_sizes(book):
    book.put(size=10)
    answer = book.claim(1, expected=11)
    assert isinstance(answer, wire.Refuse)
    assert "10 bytes" in answer.text and "11" in answer.text
    assert book.store.stats()["pinned"] == 0


def test_same_claim_twice_is_refused(book):
    book.claim(1)
    assert isinstance(book.claim(1), wire.Refuse)


def test_claims_have_a_limit(book, monkeypatch):
    monkeypatch.setattr(store, "CLAIMS_MAX", 2)
    book.claim(1)
    book.claim(2)
    assert isinstance(book.claim(3), wire.Refuse)


STEPS = st.lists(st.tuples(
    st.sampled_from(["put", "claim", "arrive", "fail", "give", "abandon", "lose", "expire",
                     "clean", "close"]),
    st.integers(0, 2), st.integers(0, 2)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_nothing_is_freed_while_pinned_and_nothing_is_freed_twice(steps):
    """Random lives of three keys and three getters against a simple model of who reads what."""
    book, reading, claims = Book(), {}, {}
    entries, n = {}, 0

    def sent(sends):
        for peer, message in sends:
            if isinstance(message, wire.Grant):
                assert message.put not in book.freed
                reading[message.put] = message.claim, peer

    for step, i, j in steps:
        key, peer = f"k{i}@0_1", f"P{j}"
        pinned = sorted(reading)
        if step == "put":
            entry, sends = book.put(key)
            entries[entry.put] = entry
            sent(sends)
        elif step == "claim":
            n += 1
            claims[n] = peer
            if not any(entries[put].key == key and reading[put][1] == peer for put in pinned):
                sent(book.store.claim(peer, wire.Claim(n, -1, key, "pool", "")))
        elif step in ("arrive", "fail", "give") and pinned:
            put = pinned[i % len(pinned)]
            claim, _ = reading.pop(put)
            if step == "fail":
                sent(book.store.arrival(put, claim, 10, RuntimeError("failed")))
            else:
                sent(book.store.done(put, claim, step == "arrive"))
        elif step == "abandon" and n:
            claim = 1 + (i * 3 + j) % n
            reading = {put: who for put, who in reading.items() if who[0] != claim}
            sent(book.store.abandon(claim))
        elif step == "lose":
            reading = {put: who for put, who in reading.items() if who[1] != peer}
            sent(book.store.peer_lost(peer))
        elif step == "expire":
            book.store.expire(time.monotonic() + 1000)
        elif step == "clean":
            book.store.remove(f"k{i}", "me")
        elif step == "close":
            book.store.remove_owner("me")
        assert not set(book.freed) & set(reading), "freed while it was read"
        assert len(book.freed) == len(set(book.freed)), "freed twice"
    for peer in ("P0", "P1", "P2"):
        book.store.peer_lost(peer)
    book.store.remove_owner("me")
    assert sorted(book.freed) == sorted(entries), "kept for ever"
