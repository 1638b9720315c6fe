"""Ranks of pretended engines for the tests of kvxfer.pd: a KV cache of numbers that say where they
belong, and requests between two engines that are checked byte by byte."""

import time

import numpy as np

import kvxfer
from kvxfer import pd
from kvxfer.pd.source import OPEN

TOKENS = 4  # of a block
DIM = 8


def groups(layers=4, n_blocks=64, total=4, tp=0, tp_size=1, pp=0, pp_size=1, order="NHD",
           tokens=TOKENS, name="main"):
    """One KV-cache group, of which this rank has its heads and layers."""
    heads = total // tp_size
    here = range(layers * pp // pp_size, layers * (pp + 1) // pp_size)
    part = {"unit_bytes": DIM * 2, "units": heads, "first_unit": tp * heads, "total_units": total,
            "order": order}
    return [pd.Group(name, tuple(f"l{i}" for i in here), tokens, n_blocks,
                     (pd.Part("k", **part), pd.Part("v", **part)))]


class TestRank:
    """A rank with numpy memory: ``kv[layer, part, block]``."""

    __test__ = False

    def __init__(self, node, engine, *, groups_=None, check=None, info=None, patience=5.0,
                 timeout=20, **place):
        self.groups = groups_ or groups(**place)
        [group] = self.groups
        [heads] = {part.units for part in group.parts}
        inner = (group.block_tokens, heads, DIM)
        if group.parts[0].order == "HND":
            inner = (heads, group.block_tokens, DIM)
        shape = (len(group.layers), 2, group.n_blocks, *inner)
        self.memory = kvxfer.Memory(2 * int(np.prod(shape)))
        self.kv = self.memory.numpy("uint16", shape)
        self.kv[...] = 0
        if group.parts[0].order == "HND":
            self.kv = self.kv.swapaxes(3, 4)
        self.socket = node.socket
        sizes = {key: place[key] for key in ("tp", "tp_size", "pp", "pp_size") if key in place}
        self.rank = pd.Rank(engine, socket=node.socket, check=check, info=info, patience=patience,
                            timeout=timeout, **sizes)
        try:
            self.rank.serve(pd.Pool.of(self.groups, {
                (0, layer, part): (self.memory, self.kv[layer, part])
                for layer in range(len(group.layers)) for part in (0, 1)}))
        except kvxfer.KvxferError:
            self.rank.close()
            raise

    @property
    def endpoint(self):
        return pd.Endpoint(self.rank.address, self.rank.name.split("/")[0])

    def fill(self, seed, blocks):
        """The KV of a request: numbers that its seed, the layer, the head and the token give."""
        self.kv[:, :, list(blocks)] = self.truth(seed, len(blocks))

    def truth(self, seed, n):
        group = self.groups[0]
        rng = np.random.default_rng(seed)
        total = group.parts[0].total_units
        whole = rng.integers(1, 2**16, (4, 2, n, group.block_tokens, total, DIM), dtype=np.uint16)
        first = int(group.layers[0][1:])
        return whole[first:first + len(group.layers), :, :, :, group.parts[0].first_unit:
                     group.parts[0].first_unit + group.parts[0].units]

    def has(self, seed, blocks, skip=0):
        want = self.truth(seed, skip + len(blocks))[:, :, skip:]
        return np.array_equal(self.kv[:, :, list(blocks)], want)

    def close(self):
        self.rank.close()


class Engine:
    """All ranks of an engine instance."""

    def __init__(self, node, name, tp_size=1, pp_size=1, **more):
        self.name = name
        self.ranks = [TestRank(node, name, tp=tp, tp_size=tp_size, pp=pp, pp_size=pp_size, **more)
                      for pp in range(pp_size) for tp in range(tp_size)]

    @property
    def endpoint(self):
        return self.ranks[0].endpoint

    def close(self):
        for rank in self.ranks:
            rank.close()


def outcomes(rank, n, timeout=20):
    """The next n outcomes of a rank, by (role, id)."""
    rank = getattr(rank, "rank", rank)
    out, end = {}, time.monotonic() + timeout
    while len(out) < n:
        got = rank.wait(max(0.0, end - time.monotonic()))
        for outcome in got:
            assert (outcome.role, outcome.id) not in out
            out[outcome.role, outcome.id] = outcome
        assert got or time.monotonic() < end, f"{len(out)} of {n} outcomes: {out}"
    assert len(out) == n
    return out


def outcome(rank, timeout=20):
    """The next outcome of a rank."""
    [one] = outcomes(rank, 1, timeout).values()
    return one


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


def reached(offer):
    """Whether every rank that an offer goes to has asked and was found: what is added goes there
    at once."""
    with offer._hub.lock:
        return offer.claimed and all(dest.state == OPEN for dest in offer._dests.values())


def until(over, timeout=20, what="it"):
    end = time.monotonic() + timeout
    while not over():
        assert time.monotonic() < end, f"{what} has not come to pass within {timeout} s"
        time.sleep(0.002)
