"""What other ranks can make a rank of kvxfer.pd keep is bounded, and a defect in one place hurts
nobody else. Most of it on a real daemon."""

import threading
import time
import tracemalloc

import pytest
from pd_ranks import TestRank, outcome, outcomes, reached, until

from kvxfer import errors, pd
from kvxfer.pd import asks, messages
from kvxfer.pd import sources as pd_sources
from kvxfer.pd.joiner import Joiner

READY = {"id": "r", "token": 5, "life": 1, "from": "a/dp0/pp0/tp0", "at": "", "left": 60,
         "place": [0, 1, 0, 1], "pairs": 1}
TAKES = [[[[0, 0, 4]], [[0, 0, 0, 4]]]]


def frames(sender, number, n, **fields):
    """A READY for n blocks."""
    ids = [messages.copy_ids(range(n), "ids")]
    return messages.frames(sender, number, messages.pack(
        messages.READY, {**READY, **fields, "wants": [[0, 0, 0, n, TAKES]]}, ids))


# ---- messages that are not whole


def test_the_longest_message_that_is_not_whole_makes_room():
    lost = []
    joiner = Joiner(lost.append, most=1 << 20)
    small, long = frames(1, 1, 20000, id="small"), frames(2, 1, 10**6, id="long")
    for frame in small[:-1] + long:
        assert joiner.add(frame) is None
        assert joiner.nbytes <= 1 << 20
    [beginning] = lost
    assert messages.head_of(beginning)[1]["id"] == "long"
    assert messages.unpack(joiner.add(small[-1])).fields["id"] == "small"
    assert joiner.nbytes == 0
    assert joiner.add(frames(2, 2, 3)[0]) is not None  # its sender may go on


def test_many_senders_cannot_fill_the_memory():
    n_lost = []
    joiner = Joiner(lambda beginning: n_lost.append(1), most=4 << 20)
    tracemalloc.start()
    try:
        for sender in range(5000):  # 50 MiB
            for frame in messages.frames(sender, 1, bytes(10**5 if sender % 50 else 8000))[:-1]:
                joiner.add(frame)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert n_lost and kept < 12 << 20


def test_what_an_ask_takes_is_not_more_than_it_is_charged(shared_node):
    rank = TestRank(shared_node, "prefill")
    geometry = rank.rank._hub.geometry
    layers = [[999 + i, 999, 999] for i in range(3000)]
    many = messages.pack(messages.READY, {**READY, "wants": [
        [0, 0, 0, 1, [[layers, [[999, 999, 999, 999]] * 900]]]]}, [messages.copy_ids([1], "ids")])
    few = messages.pack(messages.READY, {**READY, "wants": [[0, 0, 0, 1, []]] * 1000},
                        [messages.copy_ids([1], "ids")] * 1000)
    plain = messages.pack(messages.READY, {**READY, "wants": [[0, 0, 0, 9000, TAKES]]},
                          [messages.copy_ids(range(9000), "ids")])
    for data in (many, few, plain):
        tracemalloc.start()
        try:
            kept = [asks.read_ask(messages.unpack(bytes(bytearray(data))), geometry, 0.0)
                    for _ in range(10)]
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert taken <= sum(ask.cost for ask in kept) < 40 * taken
    rank.close()


# ---- one message after the other


def test_a_message_that_comes_again_or_behind_a_later_one_is_refused():
    joiner = Joiner(bytes)
    first, second = (frames(7, n, 3000) for n in (1, 2))
    whole = [joiner.add(frame) for frame in first + second]
    assert len([one for one in whole if one is not None]) == 2
    for frame in (second[0], first[0]):
        with pytest.raises(errors.ProtocolError, match="before"):
            joiner.add(frame)


def test_two_peers_of_one_rank_do_not_mix_their_messages(shared_node):
    """A rank known by two addresses: both tell long messages at the same time."""
    prefill, decode = TestRank(shared_node, "prefill"), TestRank(shared_node, "decode")
    address = prefill.rank.address
    assert address
    hub, seen = decode.rank._hub, prefill.rank._hub
    with hub.lock:
        peers = [hub.peer(prefill.rank.name, where) for where in (
            "", address.replace("127.0.0.1", "localhost"))]
        assert peers[0] is not peers[1]
    until(lambda: all(peer.up for peer in peers))
    with hub.lock:
        posts = []
        for peer in peers:
            for one in peer.imports:
                one.post, post = (lambda data: posts.append(data)), one.post
            peer.send(messages.CANCEL, {"id": "x" * 150, "role": "offer", "token": 0, "from": "n",
                                        "at": "a" * 20, "status": 1, "text": "y" * 6000})
        half = len(posts) // 2
        for pair in zip(posts[:half], posts[half:]):
            for frame in pair:
                post(frame)
    until(lambda: seen.stats()["messages_in"] == 2)
    assert not prefill.rank.stats().get("messages_bad")
    prefill.close()
    decode.close()


@pytest.fixture
def engines(shared_node):
    made = []

    def make(*names, **more):
        made.extend(TestRank(shared_node, name, **more) for name in names)
        return made[-len(names):]

    yield make
    for rank in made:
        rank.close()


class Stranger:
    """A client of its own that says what it likes to a rank."""

    def __init__(self, node, rank):
        self.client = node.client("stranger")
        self.found = self.client.find("", rank.rank.name)
        until(lambda: self.client.poll() or self.found.up)

    def say(self, frames):
        for frame in frames:
            while True:
                try:
                    self.found.post(frame)
                    break
                except errors.TryAgain:
                    time.sleep(0.001)


@pytest.fixture
def stranger(shared_node):
    made = []

    def make(rank):
        made.append(Stranger(shared_node, rank))
        return made[-1]

    yield make
    for one in made:
        one.client.close()


def caught(rank, monkeypatch):
    """Messages of a rank to ranks that are not there."""
    out, hub = [], rank.rank._hub
    tell = hub.sources.tell
    monkeypatch.setattr(hub.sources, "tell", lambda name, at, kind, fields: (
        out.append((kind, fields)), tell(name, at, kind, fields)))
    return out


def test_a_cancel_that_overtakes_its_request_is_kept_in_mind(engines, stranger, monkeypatch):
    """It was told that nothing moves: a request with that token must not be served any more."""
    [prefill] = engines("prefill")
    offer = prefill.rank.offer("r", deadline=30)
    other, out = stranger(prefill), caught(prefill, monkeypatch)
    name = {"from": "gone/dp0/pp0/tp0", "place": [0, 1, 0, 1], "life": 1 << 62}
    cancel = messages.pack(messages.CANCEL, {
        **READY, **name, "role": "offer", "life": prefill.rank._hub.geometry.life, "status": 1,
        "text": "gave up"})
    other.say(messages.frames(1, 1, cancel) + frames(2, 1, 2, **name))
    until(lambda: prefill.rank.stats().get("asks_late") == 1)
    assert [kind for kind, _ in out] == [messages.FAILED] * 2
    assert {fields["token"] for _, fields in out} == {5} and not offer.infos and not offer.ended


def test_a_request_that_comes_twice_is_not_served_by_the_next_offer(engines, stranger):
    """The second one of two ways brings it after its offer has ended."""
    prefill, decode = engines("prefill", "decode")
    decode.rank.expect("r", prefill.endpoint, {0: (0, [1])}, deadline=20)
    hub = decode.rank._hub
    until(lambda: decode.rank.stats()["messages_out"] == 1)
    with hub.lock:
        [(token, _)] = hub._listeners.items()
    offer = prefill.rank.offer("r", deadline=20)
    offer.add(0, 0, [1])
    offer.seal()
    assert outcome(prefill).ok and outcome(decode).ok
    decode.kv[...] = 0xcafe
    stranger(prefill).say(frames(3, 1, 1, token=token, life=hub.geometry.life,
                                 at=decode.rank.address, **{"from": decode.rank.name}))
    until(lambda: prefill.rank.stats().get("asks_again") == 1)
    offer = prefill.rank.offer("r", deadline=20)
    offer.add(0, 0, [2])
    offer.seal()
    time.sleep(0.2)
    assert not offer.claimed and (decode.kv == 0xcafe).all()


# ---- requests that wait


def test_what_one_rank_asks_for_is_bounded(engines, stranger, monkeypatch):
    """It is told so; another rank is served."""
    prefill, decode = engines("prefill", "decode")
    monkeypatch.setattr(pd_sources, "ASKS_MAX_EACH", 1 << 20)
    for i in range(200):
        decode.rank.expect(f"r{i}", prefill.endpoint, {0: (0, [1])}, deadline=30)
    until(lambda: prefill.rank.stats()["messages_in"] == 200)
    ledger = prefill.rank._hub.sources.ledger
    assert 0 < ledger.total <= 1 << 20
    refused = decode.rank.wait(5)
    assert refused
    for one in refused:
        assert isinstance(one.error, errors.Quota) and decode.rank.name in str(one.error)
    [third] = engines("third")
    third.rank.expect("fine", prefill.endpoint, {0: (0, [2])}, deadline=20)
    offer = prefill.rank.offer("fine", deadline=20)
    offer.add(0, 0, [1])
    offer.seal()
    assert outcome(third).ok and outcome(prefill).ok
    assert prefill.rank.stats()["asks_refused"] >= len(refused)


def test_where_all_ask_for_too_much_the_oldest_of_the_worst_is_refused(engines, monkeypatch):
    prefill, greedy, modest = engines("prefill", "greedy", "modest")
    for i in range(50):
        greedy.rank.expect(f"g{i}", prefill.endpoint, {0: (0, [1])}, deadline=30)
    until(lambda: prefill.rank.stats()["messages_in"] == 50)
    sources = prefill.rank._hub.sources
    oldest = next(iter(sources._waiting))[1]
    monkeypatch.setattr(pd_sources, "ASKS_MAX", sources.ledger.total + 300)
    modest.rank.expect("m", prefill.endpoint, {0: (0, [2])}, deadline=20)
    got = outcomes(greedy, 1)
    [one] = got.values()
    assert one.id == oldest and isinstance(one.error, errors.Quota)
    offer = prefill.rank.offer("m", deadline=20)
    offer.add(0, 0, [1])
    offer.seal()
    assert outcome(modest).ok and outcome(prefill).ok
    assert prefill.rank.stats()["asks_refused"] == 1


def test_a_request_that_made_room_before_it_was_whole_is_told_so(engines, monkeypatch):
    [prefill] = engines("prefill")
    hub = prefill.rank._hub
    monkeypatch.setattr(hub._inbox._joiner, "_most", 20000)
    [decode] = engines("decode", n_blocks=20000)
    decode.rank.expect("long", prefill.endpoint, {0: (0, list(range(20000)))}, deadline=20)
    one = outcome(decode)
    assert isinstance(one.error, errors.Quota) and prefill.rank.name in str(one.error)
    assert prefill.rank.stats()["messages_dropped"] == 1 and hub._inbox._joiner.nbytes == 0


def test_blocks_that_were_granted_and_made_room_end_the_fetch(engines, monkeypatch):
    prefill, decode = engines("prefill", "decode", n_blocks=20000)
    monkeypatch.setattr(decode.rank._hub._inbox._joiner, "_most", 20000)
    prefill.rank.hold("r", {0: (0, list(range(20000)))}, deadline=20)
    decode.rank.fetch("r", prefill.endpoint, {0: (0, list(range(20000)))}, deadline=20)
    for rank in (decode, prefill):
        assert isinstance(outcome(rank, 10).error, errors.Quota)


def test_ranks_that_are_not_there_do_not_fill_the_tables(engines, stranger, monkeypatch):
    from kvxfer.pd import hub

    monkeypatch.setattr(hub, "_PEERS_MAX", 20)
    [prefill] = engines("prefill")
    monkeypatch.setattr(prefill.rank._hub, "find", never_found)
    other = stranger(prefill)
    for i in range(100):
        other.say(frames(1, i + 1, 2, token=i + 1, **{"from": f"e{i}/dp0/pp0/tp0"}))
    until(lambda: prefill.rank.stats()["messages_in"] == 100)
    assert len(prefill.rank._hub._peers) == 20
    stats = prefill.rank.stats()
    assert stats["asks_refused"] == stats["answers_dropped"] == 80


def never_found(peer, region):
    raise errors.TryAgain("it is being looked for")


def test_more_ranks_than_an_engine_has_are_refused(engines, stranger, monkeypatch):
    [prefill] = engines("prefill")
    monkeypatch.setattr(prefill.rank._hub, "find", never_found)
    offer = prefill.rank.offer("r", deadline=20)
    other = stranger(prefill)
    for i in range(5):
        other.say(frames(1, i + 1, 2, token=i + 1, place=[0, 2, 0, 1],
                         **{"from": f"e/dp0/pp0/tp{i}"}))
    until(lambda: prefill.rank.stats()["messages_in"] == 5)
    assert len(offer._dests) == 2


def test_plans_that_another_rank_makes_long_are_not_kept(engines, stranger):
    """Each would be another one."""
    prefill, decode = engines("prefill", "decode")
    other = stranger(prefill)
    parts = [[0, 0, 0, 4]] * 600
    for i in range(3):
        prefill.rank.offer(f"r{i}", deadline=20)
        other.say(messages.frames(1, i + 1, messages.pack(messages.READY, {
            **READY, "id": f"r{i}", "from": decode.rank.name, "at": decode.rank.address,
            "token": i + 1, "life": decode.rank._hub.geometry.life,
            "wants": [[0, 0, 0, 1, [[[[0, 0, 1]], parts + parts[:i]]]]]},
            [messages.copy_ids([1], "ids")])))
    until(lambda: prefill.rank.stats()["messages_in"] == 3)
    until(lambda: prefill.rank.stats()["peers"] == 1 or prefill.rank._outcomes)
    with prefill.rank._hub.lock:
        [peer] = prefill.rank._hub._peers.values()
        assert not peer._pairs and not peer._runs


# ---- defects


def expecting(prefill, decode, *ids):
    """Expects that look for the same peer, which is not there yet."""
    return [decode.rank.expect(id_, prefill, {0: (0, [i])}, deadline=20)
            for i, id_ in enumerate(ids)]


def test_one_watcher_that_fails_does_not_starve_the_others(engines, monkeypatch, caplog):
    [decode] = engines("decode")
    things = expecting(pd.Endpoint("", "prefill"), decode, "a", "b", "c", "d")
    for thing in things[1:3]:
        monkeypatch.setattr(thing, "_src_up", lambda src: 1 / 0)
    [prefill] = engines("prefill")
    got = outcomes(decode, 2)
    assert {one.id for one in got.values()} == {"b", "c"}
    for one in got.values():
        assert isinstance(one.error, errors.Internal) and "ZeroDivision" in str(one.error)
    for id_ in "ad":
        offer = prefill.rank.offer(id_, deadline=20)
        offer.add(0, 0, [1])
        offer.seal()
        assert outcome(decode).ok and outcome(prefill).ok


@pytest.mark.parametrize("kind", ["expect", "fetch"])
def test_a_begin_that_raises_leaves_nothing_behind(engines, monkeypatch, kind):
    from kvxfer.pd import dest

    prefill, decode = engines("prefill", "decode")
    with monkeypatch.context() as patch:
        patch.setattr(dest, "source_peer", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            getattr(decode.rank, kind)("r", prefill.endpoint, {0: (0, [1])}, deadline=0.2)
    assert decode.rank.stats()["open"] == 0
    assert decode.rank.wait(0.4) == []  # its deadline tells nothing of it either
    getattr(decode.rank, kind)("r", prefill.endpoint, {0: (0, [1])}, deadline=20)
    if kind == "expect":
        offer = prefill.rank.offer("r", deadline=20)
        offer.add(0, 0, [1])
        offer.seal()
    else:
        prefill.rank.hold("r", {0: (0, [1])}, deadline=20)
    assert outcome(decode).ok and outcome(prefill).ok


def test_a_second_request_that_was_refused_does_not_end_the_first(engines):
    """Its deadline is nobody's."""
    prefill, decode = engines("prefill", "decode")
    decode.rank.expect("r", prefill.endpoint, {0: (0, [1])}, deadline=20)
    offer = prefill.rank.offer("r", deadline=20)
    with pytest.raises(errors.Exists):
        decode.rank.expect("r", prefill.endpoint, {0: (0, [2])}, deadline=0.1)
    with pytest.raises(errors.Exists):
        prefill.rank.offer("r", deadline=0.1)
    with pytest.raises(errors.Invalid):
        decode.rank.expect("s", prefill.endpoint, {0: (0, [2])}, deadline=0.1, info=bytes(2000))
    assert decode.rank.wait(0.4) == [] and prefill.rank.finished() == []
    offer.add(0, 0, [1])
    offer.seal()
    assert outcome(decode).ok and outcome(prefill).ok


def test_a_request_that_is_too_long_ends_and_the_source_is_told(engines, monkeypatch):
    prefill, decode = engines("prefill", "decode")
    monkeypatch.setattr(messages, "MESSAGE_MAX", 3000)
    offer = prefill.rank.offer("r", deadline=20)
    decode.rank.expect("r", prefill.endpoint, {0: (0, list(range(60)) * 20)}, deadline=20)
    for rank in (decode, prefill):
        assert isinstance(outcome(rank, 5).error, errors.Invalid)
    assert offer.ended


class Never:
    """An event that does not come."""

    def query(self):
        return False


@pytest.mark.parametrize("where", ["poll", "stream", "message", "arrival"])
def test_a_defect_fails_what_it_hits_and_nothing_else(engines, where):
    """Wherever the thread calls something of a request: it raises once."""
    prefill, decode = engines("prefill", "decode")
    offer = prefill.rank.offer("hit", deadline=60)
    sink = decode.rank.expect("hit", prefill.endpoint, {0: (0, [1, 2])}, deadline=60)
    until(lambda: reached(offer))
    offer.add(0, 0, [1])
    [dest], [src] = offer._dests.values(), sink._srcs.values()
    target, name = {"poll": (offer, "on_poll"), "stream": (dest.data.stream, "go"),
                    "message": (src, "on_message"), "arrival": (src, "on_arrival")}[where]
    call = getattr(target, name)

    def raises(*args):
        setattr(target, name, call)
        raise ZeroDivisionError

    with prefill.rank._hub.lock, decode.rank._hub.lock:
        setattr(target, name, raises)
        if where == "poll":
            offer.add(0, 1, [2], after=Never())
        elif where == "stream":
            prefill.rank._hub.blocked(dest.data.stream)
    if where == "message":
        offer.cancel("to have something told")
    elif where == "arrival":
        offer.add(0, 1, [2])
        offer.seal()
    hit = outcome(decode if where in ("message", "arrival") else prefill)
    assert isinstance(hit.error, errors.Internal) and "ZeroDivision" in str(hit.error)
    outcome(prefill if where in ("message", "arrival") else decode)
    offer = prefill.rank.offer("next", deadline=20)
    decode.rank.expect("next", prefill.endpoint, {0: (0, [5])}, deadline=20)
    offer.add(0, 0, [3])
    offer.seal()
    assert outcome(prefill).ok and outcome(decode).ok


@pytest.mark.parametrize("state", ["waiting", "moving"])
def test_the_end_of_the_thread_ends_everything(engines, monkeypatch, caplog, state):
    """What nobody has thought of: named, logged, and nothing moves afterwards."""
    prefill, decode = engines("prefill", "decode", n_blocks=64, tokens=256)
    blocks = list(range(60))
    offer = prefill.rank.offer("r", deadline=60)
    if state == "moving":
        decode.rank.expect("r", prefill.endpoint, {0: (0, blocks)}, deadline=60)
        until(lambda: reached(offer))
        offer.add(0, 0, blocks, layers=range(1))
    else:
        decode.rank.expect("nobody", prefill.endpoint, {0: (0, [1])}, deadline=60)
    hub = decode.rank._hub
    monkeypatch.setattr(hub, "_turn", lambda readable: 1 / 0)
    with hub.lock:
        hub._ring()
    got = outcomes(decode, 1, 10)
    for one in got.values():
        assert isinstance(one.error, errors.Internal) and "ZeroDivision" in str(one.error)
    decode.kv[...] = 0xcafe
    if state == "moving":
        assert isinstance(outcome(prefill).error, (errors.RegionLost, errors.ClientLost))
    time.sleep(0.2)
    assert (decode.kv == 0xcafe).all()
    with pytest.raises(errors.Internal, match="ZeroDivision"):
        decode.rank.offer("more", deadline=1)
    assert any("its thread has ended" in record.message for record in caplog.records)
    start = time.monotonic()
    decode.close()
    assert time.monotonic() - start < 5


def test_what_begins_while_the_rank_is_being_closed_is_refused(engines):
    """It has come as far as the lock when close() begins."""
    [rank] = engines("prefill")
    hub, ends = rank.rank._hub, []

    def begin():
        try:
            ends.append(rank.rank.offer("r", deadline=1000))
        except errors.Closed as error:
            ends.append(error)

    thread = threading.Thread(target=begin)
    with hub.lock:
        thread.start()
        time.sleep(0.2)
        rank.rank._closed = True  # the first thing that close() does
    thread.join()
    open_, rank.rank._closed = hub._open(), False
    assert open_ == [] and isinstance(ends[0], errors.Closed)
