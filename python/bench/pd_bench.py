"""What kvxfer.pd costs an engine: one process per engine, a real daemon.

    KVXFERD=build/daemon/kvxferd python python/bench/pd_bench.py [--runs 9] [--json FILE]

Qwen3-235B at TP4, 2,000 tokens: 94 layers, one of 4 KV heads here, head dim 128 in bfloat16, blocks
of 16 tokens: 125 blocks x 2 x 94 = 23,500 ops of 4 KiB, 96 MB. Each figure is the median of the
runs' medians, with the lowest and the highest run. Measured at the call and at the engine, not in
between; the other engine is another process.
"""

import argparse
import gc
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
import timeit

import kvxfer
from kvxfer import pd

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

LAYERS, BLOCKS, TOKENS, HEAD_BYTES = 94, 125, 16, 256
N_BLOCKS = 512
OPS = LAYERS * 2 * BLOCKS
LAYER_S = 0.002  # pretended computing of a layer


def rank(node, name):
    part = {"unit_bytes": HEAD_BYTES, "units": 1, "first_unit": 0, "total_units": 4, "order": "NHD"}
    group = pd.Group("attention", tuple(f"model.layers.{i}.self_attn.attn" for i in range(LAYERS)),
                     TOKENS, N_BLOCKS, (pd.Part("k", **part), pd.Part("v", **part)))
    block = TOKENS * HEAD_BYTES
    memory = kvxfer.Memory(LAYERS * 2 * N_BLOCKS * block)
    planes = {(0, layer, p): (memory, (2 * layer + p) * N_BLOCKS * block, block)
              for layer in range(LAYERS) for p in (0, 1)}
    made = pd.Rank(name, socket=node)
    made.serve(pd.Pool.of([group], planes))
    return made


def scattered(seed):
    """Block ids as after a long run, as vLLM gives them: a list of int."""
    import random

    return random.Random(seed).sample(range(N_BLOCKS), BLOCKS)


def decode_main(pipe, node):
    """The decode engine: expects what it is told, and says when it was told the end."""
    decode = rank(node, "decode")
    pipe.send(decode.address)
    source = pd.Endpoint(*pipe.recv())
    while True:
        job = pipe.recv()
        if job is None:
            break
        before = decode.stats()
        for id_ in job[1:]:
            getattr(decode, job[0])(id_, source, {0: (0, scattered(id_))}, deadline=60)
        done = []
        while len(done) < len(job) - 1:
            done += decode.wait(60)
            told = time.monotonic()
        assert all(outcome.ok for outcome in done), done
        after = decode.stats()
        pipe.send((told, done[-1].seconds, after["messages_out"] - before["messages_out"]))
    decode.close()


class Bench:
    def __init__(self, node, other):
        fork = multiprocessing.get_context("fork")
        self.pipe, theirs = fork.Pipe()
        self.process = fork.Process(target=decode_main, args=(theirs, other), daemon=True)
        self.process.start()
        self.pipe.recv()
        self.prefill = rank(node, "prefill")
        self.pipe.send((self.prefill.address, "prefill"))
        self.n = 0
        self.first_ns = []
        self._watch()

    def _watch(self):
        """When the daemon gave the first op to a transport is in the terminal event."""
        on_terminal = self.prefill._hub._on_terminal

        def watched(event):
            self.first_ns.append(event.first_ns)
            on_terminal(event)

        self.prefill._hub._on_terminal = watched

    def close(self):
        self.pipe.send(None)
        self.process.join()
        self.prefill.close()

    def offer(self):
        """An offer that the decode engine has asked for already."""
        self.n += 1
        offer = self.prefill.offer(f"r{self.n}", deadline=60)
        self.pipe.send(("expect", offer.id))
        while not (offer.claimed and next(iter(offer._dests.values())).state == "open"):
            time.sleep(0.0005)
        time.sleep(0.002)
        return offer

    def end(self):
        told, seconds, messages = self.pipe.recv()
        [outcome] = self.prefill.wait(60)
        assert outcome.ok, outcome
        return told, messages

    def whole(self):
        """All layers in one call. Seconds of the call (the thread's CPU, and on the clock: the
        daemon may get the CPU as soon as it is told), and from the call until the daemon moves the
        first block."""
        offer = self.offer()
        ids = scattered(self.n + 1000)
        start, cpu = time.monotonic(), time.thread_time()
        offer.add(0, 0, ids)
        cpu, called = time.thread_time() - cpu, time.monotonic() - start
        offer.seal()
        _, messages = self.end()
        return cpu, called, self.first_ns[-1] / 1e9 - start, messages

    def in_a_row(self, n=4):
        """Of several requests in one step of the engine: CPU seconds of one add() (median of all
        but the first)."""
        self.n += n
        offers = [self.prefill.offer(f"r{self.n - i}", deadline=60) for i in range(n)]
        self.pipe.send(("expect", *(offer.id for offer in offers)))
        while not all(offer.claimed for offer in offers):
            time.sleep(0.0005)
        time.sleep(0.005)
        ids, calls = [scattered(i) for i in range(n)], []
        for offer, blocks in zip(offers, ids):
            cpu = time.thread_time()
            offer.add(0, 0, blocks)
            calls.append(time.thread_time() - cpu)
            offer.seal()
        self.pipe.recv()
        done = 0
        while done < n:
            done += len(self.prefill.wait(60))
        return statistics.median(calls[1:])

    def by_layer(self):
        """Streamed. CPU seconds of one add (median), and from the last add to the decode engine's
        Outcome."""
        offer = self.offer()
        ids = scattered(self.n + 1000)
        calls = []
        for layer in range(LAYERS):
            time.sleep(LAYER_S)
            start, cpu = time.monotonic(), time.thread_time()
            offer.add(0, 0, ids, layers=range(layer, layer + 1))
            calls.append(time.thread_time() - cpu)
        offer.seal()
        told, messages = self.end()
        return statistics.median(calls), told - start, messages

    def read(self):
        """READ of blocks that are held. Seconds from fetch() to the Outcome at the decode
        engine."""
        self.n += 1
        self.prefill.hold(f"r{self.n}", {0: (0, scattered(self.n + 1000))}, deadline=60)
        start = time.monotonic()
        self.pipe.send(("fetch", f"r{self.n}"))
        told, messages = self.end()
        return told - start, messages

    def idle(self):
        """Seconds of finished() when nothing has happened."""
        n = 20000
        return timeit.timeit(self.prefill.finished, number=n) / n


def measure(bench, runs, repeats):
    rows = {}

    def row(name, values):
        rows.setdefault(name, []).append(statistics.median(values))

    for _ in range(runs):
        gc.collect()
        row("finished(), nothing happened (us)", [1e6 * bench.idle() for _ in range(3)])
        whole = [bench.whole() for _ in range(repeats)]
        row("add() of 23,500 ops in one piece, CPU (us)", [1e6 * one[0] for one in whole])
        row("the same, of 4 requests in a row, CPU (us)", [1e6 * bench.in_a_row()
                                                           for _ in range(repeats)])
        row("add() of 23,500 ops in one piece (us)", [1e6 * one[1] for one in whole])
        row("add() to the first op under way in the daemon (us)", [1e6 * one[2] for one in whole])
        layers = [bench.by_layer() for _ in range(repeats)]
        row("add() of one layer of a stream, CPU (us)", [1e6 * one[0] for one in layers])
        row("last layer's add() to decode told (us)", [1e6 * one[1] for one in layers])
        reads = [bench.read() for _ in range(repeats)]
        row("READ: fetch() to decode told, 96 MB (ms)", [1e3 * one[0] for one in reads])
    return rows


def messages_of(bench):
    """Messages that both sides send for one request, once they know each other."""
    out = {}
    for name, call in (("WRITE", bench.whole), ("READ", bench.read)):
        before = bench.prefill.stats()
        theirs = call()[-1]
        after = bench.prefill.stats()
        out[f"messages per request, {name}"] = theirs + \
            after["messages_out"] - before["messages_out"]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    from conftest import Node

    nodes = [Node(), Node()]
    result = {"machine": f"{os.cpu_count()} cores", "runs": args.runs}
    try:
        for title, other in (("one node", nodes[0]), ("two daemons", nodes[1])):
            bench = Bench(nodes[0].socket, other.socket)
            bench.whole(), bench.by_layer(), bench.read()
            rows = measure(bench, args.runs, args.repeats)
            print(f"\n{title} ({args.runs} runs of {args.repeats})")
            for name, values in rows.items():
                low, mid, high = min(values), statistics.median(values), max(values)
                print(f"  {name:<52} {mid:10.2f}   [{low:.2f} .. {high:.2f}]")
            counted = messages_of(bench)
            for name, n in counted.items():
                print(f"  {name:<52} {n:10d}")
            result[title] = {**rows, **counted}
            bench.close()
    finally:
        for node in nodes:
            node.stop()
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
