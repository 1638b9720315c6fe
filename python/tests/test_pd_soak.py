"""10,000 requests through kvxfer.pd, some of which end early: nothing grows, in the engines or in
the daemon."""

import gc
import os
import random
import time

from pd_ranks import TestRank

from conftest import anonymous_bytes
from kvxfer import errors

REQUESTS = int(os.environ.get("KVXFER_SOAK", "10000"))
AT_ONCE = 8
BLOCKS = 3


def used(*pids):
    """Bytes of each process, and what each has open."""
    return ([anonymous_bytes(pid) for pid in pids],
            [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids])


#: What ranks know for good: each other.
KEPT = {"_imports": 1, "_peers": 1, "_assigned": 1}


def left(rank):
    """Sizes of everything in which a request could be left behind, where something is."""
    hub = rank.rank._hub
    with hub.lock:
        sizes = {name: len(getattr(hub, name)) for name in (
            "_sinks", "_streams", "_listeners", "_imports", "_peers", "_polled", "_blocked",
            "_closer", "_assigned")} | {name: len(getattr(hub.sources, name))
                                        for name in ("_things", "_waiting")} | {
            "bytes of asks": hub.sources.ledger.total}
    return {name: n for name, n in sizes.items() if n > KEPT.get(name, 0)}


class Load:
    """Requests between two ranks, a few at a time: each takes its own blocks, and gives them back
    when it was told the end."""

    def __init__(self, prefill, decode, seed):
        self.prefill, self.decode = prefill, decode
        self.rnd = random.Random(seed)
        self.open = {}
        self.n = 0
        self.ends = {}

    def begin(self, slot):
        self.n += 1
        id_, blocks = f"request-{self.n}", list(range(slot * BLOCKS, slot * BLOCKS + BLOCKS))
        self.open[id_] = [slot, 2]
        mode, early = self.rnd.choice(("write", "read")), self.rnd.random() < 0.2
        steps = [lambda: self.sink(id_, mode, blocks), lambda: self.source(id_, mode, blocks)]
        self.rnd.shuffle(steps)
        things = [step() for step in steps]
        if early:
            self.rnd.choice(things).cancel("early")

    def sink(self, id_, mode, blocks):
        call = self.decode.rank.expect if mode == "write" else self.decode.rank.fetch
        return call(id_, self.prefill.endpoint, {0: (0, blocks)}, deadline=60)

    def source(self, id_, mode, blocks):
        if mode == "read":
            return self.prefill.rank.hold(id_, {0: (0, blocks)}, deadline=60)
        offer = self.prefill.rank.offer(id_, deadline=60)
        for block in range(BLOCKS):
            offer.add(0, block, blocks[block:block + 1])
        offer.seal()
        return offer

    def run(self, n):
        begun = 0
        free = list(range(AT_ONCE))
        while begun < n or self.open:
            while free and begun < n:
                self.begin(free.pop())
                begun += 1
            for outcome in self.prefill.rank.finished() + self.decode.rank.wait(0.01):
                assert outcome.ok or isinstance(outcome.error, errors.Cancelled), outcome
                self.ends[outcome.ok] = self.ends.get(outcome.ok, 0) + 1
                slot = self.open[outcome.id]
                slot[1] -= 1
                if not slot[1]:
                    free.append(slot[0])
                    del self.open[outcome.id]


def test_nothing_grows_over_many_requests(small_pages, node):
    prefill, decode = TestRank(node, "prefill"), TestRank(node, "decode")
    load = Load(prefill, decode, 3)
    pids = os.getpid(), node.process.pid
    load.run(max(REQUESTS // 5, 200))  # caches and the allocator's arenas are filled
    gc.collect()
    objects = len(gc.get_objects())
    before, files = used(*pids)
    begin = time.monotonic()
    load.run(REQUESTS)
    seconds = time.monotonic() - begin
    gc.collect()
    for rank in (prefill, decode):
        end = time.monotonic() + 20
        while left(rank) and time.monotonic() < end:  # the last messages
            time.sleep(0.01)
        assert left(rank) == {} and rank.rank.stats()["open"] == 0
    after, files_after = used(*pids)
    print(f"{REQUESTS} requests in {seconds:.1f} s, ends {load.ends}, memory of the engines "
          f"{before[0] >> 10} -> {after[0] >> 10} KiB, of the daemon {before[1] >> 10} -> "
          f"{after[1] >> 10} KiB")
    assert load.ends[False] > REQUESTS // 100
    assert files_after == files
    # What is remembered of ended ids is bounded; 4 MiB is 400 bytes a request.
    assert after[0] - before[0] < 4 << 20 and after[1] - before[1] < 4 << 20
    assert len(gc.get_objects()) - objects < 30000
    prefill.close()
    decode.close()
