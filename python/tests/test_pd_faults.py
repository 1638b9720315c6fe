"""kvxfer.pd when something ends early: a cancel, a deadline or a death in every state. Both sides
are told, and memory whose Outcome was told is not touched any more: it is filled with canaries that
must stay."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from pd_ranks import TestRank, outcome, outcomes, reached, until

from conftest import Node
from kvxfer import errors
from kvxfer.events import EventType

CANARY = 0xCA5E
N_BLOCKS, TOKENS = 64, 256  # 64 blocks x 4 layers x K and V of 16 KiB: 8 MiB a request
SRC, DST = list(range(0, 60)), list(range(2, 62))
SETTLE_S = 0.25  # late bytes would land within it

SIZES = {"n_blocks": N_BLOCKS, "tokens": TOKENS}


@pytest.fixture
def two():
    """Two nodes that a test may kill."""
    nodes = [Node(), Node()]
    yield nodes
    for node in nodes:
        node.stop()


@pytest.fixture(params=["one node", "two nodes"])
def pair(request, shared_node, other_node):
    """A prefill and a decode rank."""
    nodes = (shared_node, shared_node if request.param == "one node" else other_node)
    made = [TestRank(node, name, **SIZES) for node, name in zip(nodes, ("prefill", "decode"))]
    yield made
    for rank in made:
        rank.close()


def check_canaries(rank, blocks, settle=SETTLE_S):
    """The blocks were given back: whatever lands there now is a late byte."""
    rank.kv[:, :, blocks] = CANARY
    time.sleep(settle)
    assert (rank.kv[:, :, blocks] == CANARY).all()


def begin(prefill, decode, mode, state):
    """Brings a request into a state. Gives what prefill and decode have of it (or None)."""
    prefill.fill(1, SRC)
    source = sink = None
    wanted = {0: (0, DST)}
    if mode == "write":
        if state != "offered":
            sink = decode.rank.expect("r", prefill.endpoint, wanted, deadline=60)
        if state != "expected":
            source = prefill.rank.offer("r", deadline=60)
            layers = {"streaming": 3, "begun": 1, "sealed": 4}.get(state, 0)
            if state in ("streaming", "begun"):
                until(lambda: reached(source))
            for layer in range(layers):
                source.add(0, 0, SRC, layers=range(layer, layer + 1))
            if state == "sealed":
                source.seal()
    else:
        if state != "held":
            sink = decode.rank.fetch("r", prefill.endpoint, wanted, deadline=60)
        if state != "fetching":
            source = prefill.rank.hold("r", {0: (0, SRC)}, deadline=60)
    return source, sink


WRITE_STATES = ["offered", "expected", "both", "begun", "streaming", "sealed"]
READ_STATES = ["held", "fetching", "reading"]
#: Mode, state, and the side that ends it: only one that has something to end.
ENDS = [(mode, state, side) for mode, states in (("write", WRITE_STATES), ("read", READ_STATES))
        for state in states for side in ("prefill", "decode")
        if (state, side) not in (("offered", "decode"), ("expected", "prefill"), ("held", "decode"),
                                 ("fetching", "prefill"))]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
@pytest.mark.parametrize("mode, state, side", ENDS)
def test_an_early_end_reaches_both_sides_and_nothing_is_late(pair, mode, state, side, how):
    prefill, decode = pair
    source, sink = begin(prefill, decode, mode, state)
    thing = source if side == "prefill" else sink
    if how == "cancel":
        thing.cancel("out of patience")
    else:  # as an alarm would at that time
        with thing._hub.lock:
            thing._until = 0
            thing._on_deadline()
    cause = errors.Cancelled if how == "cancel" else errors.Deadline
    first, last = (prefill, decode) if side == "prefill" else (decode, prefill)
    one = outcome(first)
    if state in ("sealed", "reading") and one.ok:  # it had ended before it was told
        assert outcome(last).ok and decode.has(1, DST)
        return
    assert isinstance(one.error, cause) and not one.ok
    check_canaries(first, DST if side == "decode" else SRC, 0.05)
    late = source if side == "decode" else sink
    if late is None:  # the other side asks later, and hears of it
        begin(prefill, decode, mode, {"prefill": "expected", "decode": "offered"}[side]
              if mode == "write" else {"prefill": "fetching", "decode": "held"}[side])
    other = outcome(last)
    if not other.ok:
        assert isinstance(other.error, cause)
        assert first.rank.name in str(other.error) or "was cancelled" in str(other.error)
        if how == "cancel":
            assert "out of patience" in str(other.error)
    check_canaries(decode, DST)
    assert prefill.rank.stats()["open"] == decode.rank.stats()["open"] == 0
    assert prefill.rank.stats()["running"] == decode.rank.stats()["running"] == 0


@pytest.mark.parametrize("mode", ["write", "read"])
def test_cancels_at_random_moments_leave_no_late_bytes(pair, mode):
    """Whoever is told the end of a request reuses its memory at once."""
    prefill, decode = pair
    rnd = random.Random(mode)
    ended = set()
    for i in range(60):
        prefill.fill(i, SRC)
        id_ = f"r{i}"
        if mode == "write":
            sink = decode.rank.expect(id_, prefill.endpoint, {0: (0, DST)}, deadline=60)
            source = prefill.rank.offer(id_, deadline=60)
            for layer in range(4):
                source.add(0, 0, SRC, layers=range(layer, layer + 1))
            source.seal()
        else:
            source = prefill.rank.hold(id_, {0: (0, SRC)}, deadline=60)
            sink = decode.rank.fetch(id_, prefill.endpoint, {0: (0, DST)}, deadline=60)
        time.sleep(rnd.random() * 0.012)
        (source if rnd.random() < 0.5 else sink).cancel()
        got = outcome(decode)
        if got.ok:
            assert decode.has(i, DST)
        ended.add(got.ok)
        decode.kv[:, :, DST] = CANARY
        out = outcome(prefill)
        prefill.kv[:, :, SRC] = 0xBAD
        assert out.id == got.id == id_
        time.sleep(0.01)
        assert (decode.kv[:, :, DST] == CANARY).all()
    assert False in ended, "no cancel came in time: the test shows nothing"


# ---- processes that die


class Child:
    """An engine in a process of its own."""

    def __init__(self, node, name, other):
        here = os.path.dirname(os.path.abspath(__file__))
        self.process = subprocess.Popen(
            [sys.executable, f"{here}/pd_child.py", node.socket, name, other.endpoint.address,
             other.endpoint.engine, str(N_BLOCKS), str(TOKENS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=here)
        word, address = self.process.stdout.readline().split()
        assert word == "ready"
        self.address = "" if address == "-" else address

    def do(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture(params=["one node", "two nodes"])
def child_of(request, shared_node, other_node):
    """Makes a rank here and an engine process of the other kind."""
    made = []

    nodes = (shared_node, shared_node if request.param == "one node" else other_node)

    def make(own, name):
        rank = TestRank(nodes[0], own, **SIZES)
        made.append(rank.close)
        child = Child(nodes[1], name, rank)
        made.append(child.end)
        return rank, child

    def again(name):
        """The next engine of that name, in this process."""
        rank = TestRank(nodes[1], name, **SIZES)
        made.append(rank.close)
        return rank

    make.again = again
    yield make
    for close in reversed(made):
        close()


def comma(blocks):
    return ",".join(map(str, blocks))


@pytest.mark.parametrize("state", ["expected", "begun", "streaming", "claimed"])
def test_killed_prefill_engine(child_of, state):
    """The decode side hears of it in bounded time, and nothing lands after that."""
    from kvxfer import pd

    decode, child = child_of("decode", "prefill")
    source = pd.Endpoint(child.address, "prefill")
    if state == "claimed":
        decode.rank.fetch("r", source, {0: (0, DST)}, deadline=60)
        until(lambda: decode.rank.stats()["messages_out"] == 1)
    else:
        decode.rank.expect("r", source, {0: (0, DST)}, deadline=60)
        until(lambda: decode.rank.stats()["messages_out"] == 1)
    if state in ("begun", "streaming"):
        child.do("offer", "r", 5, comma(SRC))
        for layer in range(1 if state == "begun" else 3):
            child.do("add", "r", layer)
    child.signal(signal.SIGKILL)
    start = time.monotonic()
    one = outcome(decode, 10)
    assert time.monotonic() - start < 5
    assert not one.ok and isinstance(one.error, (errors.ClientLost, errors.RegionLost,
                                                 errors.Cancelled))
    assert list(one.blocks[0]) == DST
    check_canaries(decode, DST)
    assert decode.rank.stats()["open"] == 0


@pytest.mark.parametrize("state", ["claimed", "begun", "streaming", "reading"])
def test_killed_decode_engine(child_of, state):
    prefill, child = child_of("prefill", "decode")
    prefill.fill(3, SRC)
    if state == "reading":
        hold = prefill.rank.hold("r", {0: (0, SRC)}, deadline=60)
        child.do("fetch", "r", comma(DST))
        until(lambda: hold.claimed)
    else:
        offer = prefill.rank.offer("r", deadline=60)
        child.do("expect", "r", comma(DST))
        until(lambda: offer.claimed)
        for layer in range({"claimed": 0, "begun": 1, "streaming": 3}[state]):
            offer.add(0, 0, SRC, layers=range(layer, layer + 1))
    child.signal(signal.SIGKILL)
    start = time.monotonic()
    one = outcome(prefill, 10)
    assert time.monotonic() - start < 5
    if not (state == "reading" and one.ok):
        assert isinstance(one.error, (errors.ClientLost, errors.RegionLost)), one
    assert prefill.rank.stats()["open"] == prefill.rank.stats()["running"] == 0
    # The next engine of that name is found anew.
    if state == "begun":
        again = child_of.again("decode")
        again.rank.expect("r2", prefill.endpoint, {0: (0, DST)}, deadline=30)
        offer = prefill.rank.offer("r2", deadline=30)
        offer.add(0, 0, SRC)
        offer.seal()
        assert outcome(again).ok and outcome(prefill).ok and again.has(3, DST)


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_a_decode_engine_that_ended_first_ends_what_begins_later(child_of, mode, how):
    prefill, child = child_of("prefill", "decode")
    child.do("expect" if mode == "write" else "fetch", "r", comma(DST))
    until(lambda: prefill.rank.stats()["messages_in"] == 1)
    if how == "cancel":
        child.do("cancel", "r")
        until(lambda: prefill.rank.stats()["messages_in"] == 2)
    else:
        until(lambda: prefill.rank.stats()["peers"] == 1)
        child.signal(signal.SIGKILL)
        until(lambda: prefill.rank.stats()["peers"] == 0)
    prefill.rank.offer("r", deadline=60) if mode == "write" else \
        prefill.rank.hold("r", {0: (0, SRC)}, deadline=60)
    one = outcome(prefill)
    assert isinstance(one.error, errors.Cancelled if how == "cancel" else errors.ClientLost)


def test_a_stopped_prefill_engine_keeps_the_blocks_until_it_can_write_no_more(child_of):
    """SIGSTOP: it has been asked and may write any time after it goes on. So a cancel has to
    wait."""
    from kvxfer import pd

    decode, child = child_of("decode", "prefill")
    child.do("offer", "r", 5, comma(SRC))
    child.signal(signal.SIGSTOP)
    threads = pathlib.Path(f"/proc/{child.process.pid}/task").glob("*/stat")
    for stat in list(threads):
        until(lambda stat=stat: stat.read_text().rsplit(")", 1)
              [1].split()[0] == "T", what="the stop")
    thing = decode.rank.expect("r", pd.Endpoint(
        child.address, "prefill"), {0: (0, DST)}, deadline=60)
    until(lambda: decode.rank.stats()["messages_out"] == 1)
    thing.cancel("gave up")
    assert decode.rank.wait(0.5) == []
    child.signal(signal.SIGCONT)
    one = outcome(decode)
    assert isinstance(one.error, errors.Cancelled)
    check_canaries(decode, DST)
    assert child.do("wait") == "offer:r:False:Cancelled"


# ---- daemons that die


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("whose", ["prefill", "decode"])
def test_killed_daemon_of_one_side(two, whose, mode):
    """Both sides hear of it, nothing lands late, and both serve again once it is back."""
    prefill, decode = (TestRank(node, name, **SIZES)
                       for node, name in zip(two, ("prefill", "decode")))
    ranks = {"prefill": prefill, "decode": decode}
    node = two[whose == "decode"]
    prefill.fill(1, SRC)
    source = begin(prefill, decode, mode, "begun" if mode == "write" else "reading")[0]
    until(lambda: source.claimed or source.ended)
    waiting = prefill.rank.offer("waits", deadline=60)
    node.kill()
    start = time.monotonic()
    for name, rank in ranks.items():
        n = 2 if name == "prefill" and whose == "prefill" else 1
        got = outcomes(rank, n, 15)
        for one in got.values():
            if one.ok and mode == "read":
                continue  # it was faster
            want = errors.DaemonLost if name == whose else (errors.PeerLost, errors.PeerUnreachable,
                                                            errors.Cancelled, errors.ClientLost)
            assert isinstance(one.error, want), one
    assert time.monotonic() - start < 10
    check_canaries(decode, DST)
    node.start()
    prefill.fill(2, SRC)
    # Found again, although the daemon has another address now.
    until(lambda: ranks[whose].rank._hub._alive)
    again = prefill.rank.offer("again", deadline=30)
    again.add(0, 0, SRC)
    again.seal()
    decode.rank.expect("again", prefill.endpoint, {0: (0, DST)}, deadline=30)
    assert outcome(decode, 30).error is None and outcome(prefill, 30).error is None
    assert decode.has(2, DST)
    assert waiting.ended == (whose == "prefill")
    for rank in ranks.values():
        rank.close()


def test_daemon_of_both_is_killed(node):
    prefill, decode = (TestRank(node, name, **SIZES) for name in ("prefill", "decode"))
    begin(prefill, decode, "write", "begun")
    node.kill()
    for rank in (prefill, decode):
        assert isinstance(outcome(rank, 15).error, errors.DaemonLost)
    check_canaries(decode, DST)
    # What begins while it is away goes on when it is back.
    decode.rank.expect("r", prefill.endpoint._replace(address=""), {0: (0, DST)}, deadline=30)
    offer = prefill.rank.offer("r", deadline=30)
    prefill.fill(9, SRC)
    offer.add(0, 0, SRC)
    offer.seal()
    node.start()
    assert outcome(decode, 30).error is None and outcome(prefill).error is None
    assert decode.has(9, DST)
    prefill.close()
    decode.close()


def test_close_with_everything_open_ends_everything(pair):
    prefill, decode = pair
    begin(prefill, decode, "write", "streaming")
    prefill.rank.offer("waits", deadline=60)
    decode.rank.fetch("f", prefill.endpoint, {0: (0, [63])}, deadline=60)
    until(lambda: decode.rank.stats()["messages_out"] == 2)
    decode.rank.close()
    got = outcomes(decode, 2)
    assert {type(one.error) for one in got.values()} == {errors.Cancelled}
    check_canaries(decode, DST)
    one = outcome(prefill)
    assert one.id == "r" and isinstance(one.error, errors.Cancelled)
    with pytest.raises(errors.Closed):
        decode.rank.offer("x", deadline=1)


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_declined_before_it_was_asked_for(pair, mode, when):
    prefill, decode = pair

    def begin_source():
        if mode == "write":
            prefill.rank.offer("r", deadline=60)
        else:
            prefill.rank.hold("r", {0: (0, SRC)}, deadline=60)

    if when == "after":
        begin_source()
    decode.rank.decline("r", prefill.endpoint, "no room", reading=mode == "read")
    until(lambda: prefill.rank.stats()["messages_in"] == 1)
    if when == "before":
        begin_source()
    one = outcome(prefill, 5)
    assert isinstance(one.error, errors.Cancelled) and "no room" in str(one.error)
    assert decode.rank.finished() == []


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("first", ["source", "sink"])
def test_a_decode_engine_that_was_started_anew_before_its_end_was_told(child_of, mode, first):
    """The news of the death is still on its way when the next engine of that name asks."""
    prefill, child = child_of("prefill", "decode")
    prefill.fill(3, SRC)
    child.do("expect", "old", comma(DST))
    until(lambda: prefill.rank.stats()["peers"] == 1)
    hub, held = prefill.rank._hub, []
    on_event = hub._on_event
    hub._on_event = lambda event: (
        held.append(event) if event.type is EventType.IMPORT_LOST else on_event(event))
    child.signal(signal.SIGKILL)
    again = child_of.again("decode")
    until(lambda: held)

    def source():
        if mode == "read":
            return prefill.rank.hold("r", {0: (0, SRC)}, deadline=30)
        offer = prefill.rank.offer("r", deadline=30)
        offer.add(0, 0, SRC)
        offer.seal()
        return offer

    if first == "source":
        source()
    n = prefill.rank.stats()["messages_in"]
    (again.rank.expect if mode == "write" else again.rank.fetch)(
        "r", prefill.endpoint, {0: (0, DST)}, deadline=30)
    until(lambda: prefill.rank.stats()["messages_in"] > n)
    if first == "sink":
        late = prefill.rank.offer("refused", deadline=30)
        source()
        late.cancel("is over")
    time.sleep(0.2)
    hub._on_event = on_event
    with hub.lock:
        for event in held:
            on_event(event)
    ends = outcomes(prefill, 2 if first == "sink" else 1)
    assert outcome(again).error is None and ends[
        "offer" if mode == "write" else "hold", "r"].error is None
    assert again.has(3, DST)


def test_a_refusal_reaches_the_engine_that_was_started_anew(child_of):
    """It asks for what has failed here, and its name is still that of the dead one."""
    prefill, child = child_of("prefill", "decode")
    child.do("expect", "old", comma(DST))
    until(lambda: prefill.rank.stats()["peers"] == 1)
    prefill.rank.offer("r", deadline=30).cancel("out of luck")
    assert isinstance(outcome(prefill).error, errors.Cancelled)
    hub, held = prefill.rank._hub, []
    on_event = hub._on_event
    hub._on_event = lambda event: (
        held.append(event) if event.type is EventType.IMPORT_LOST else on_event(event))
    child.signal(signal.SIGKILL)
    again = child_of.again("decode")
    until(lambda: held)
    again.rank.expect("r", prefill.endpoint, {0: (0, DST)}, deadline=30)
    until(lambda: hub.sources.late == 1)
    hub._on_event = on_event
    with hub.lock:
        for event in held:
            on_event(event)
    one = outcome(again, 5)
    assert isinstance(one.error, errors.Cancelled) and "out of luck" in str(one.error)


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("first", ["source", "sink"])
def test_a_decode_engine_that_dies_before_it_was_found(child_of, mode, first):
    """It has asked, and this rank has not met it yet. It is not looked for as one that may come
    yet."""
    prefill, child = child_of("prefill", "decode")
    hub = prefill.rank._hub
    hub.patience, find = 60, hub.find

    def later(peer, region):
        raise errors.TryAgain("the child lives")

    hub.find = later

    def source():
        if mode == "read":
            prefill.rank.hold("r", {0: (0, SRC)}, deadline=60)
        else:
            prefill.rank.offer("r", deadline=60).add(0, 0, SRC)

    if first == "source":
        source()
    child.do("expect" if mode == "write" else "fetch", "r", comma(DST))
    until(lambda: prefill.rank.stats()["messages_in"] == 1)
    child.end()
    with hub.lock:
        hub.find = find
    if first == "sink":
        until(lambda: hub.sources._n_waiting == 0)
        source()
    assert isinstance(outcome(prefill, 10).error, errors.ClientLost)
