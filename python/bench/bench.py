"""What calls cost here: medians of 9 runs. KVXFERD names the daemon. --cpu: the calling thread's
CPU time instead of wall time, for a machine that others use too.

poll: nothing has happened. Submit: Qwen3-235B TP4 at 2,000 tokens: 94 layers of K and V, 125 blocks
of 16 tokens: 23,500 ops; as one block list, layer by layer, and as explicit ops.
"""

import os
import pathlib
import statistics
import sys
import threading
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
from conftest import Node, Pair  # noqa: E402

from kvxfer import Blocks, Ops, _native  # noqa: E402

RUNS = 9
clock = time.thread_time if "--cpu" in sys.argv else time.perf_counter
PLANES, BLOCKS = 188, 125


def report(name, runs, unit="us", scale=1e6):
    runs = sorted(run * scale for run in runs)
    print(f"{name:44} {statistics.median(runs):9.3f} {unit}  ({runs[0]:.3f} .. {runs[-1]:.3f})")


def per_call(call, n):
    begin = clock()
    for _ in range(n):
        call()
    return (clock() - begin) / n


def submits(pair, make, n=40):
    """Seconds of one submit; its end is awaited outside of the time."""
    spent = 0.0
    for _ in range(n):
        begin = clock()
        transfer = make()
        spent += clock() - begin
        transfer.wait(60)
        pair.decode.poll()
    return spent / n


def streamed(pair, ids):
    transfer = pair.write(streaming=True)
    for layer in range(PLANES // 2):
        transfer.append(Blocks(ids, ids, planes=range(2 * layer, 2 * layer + 2)))
    transfer.seal()
    return transfer


def main():
    node = Node()
    pair = Pair(node, n_planes=PLANES, n_blocks=BLOCKS, block_bytes=4096)
    client = pair.prefill
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, median (least .. most) of {RUNS}")
    raw = (lambda: _native.lib.kvxpy_poll(client._c, client._events))
    report("loop and empty call", [per_call(lambda: None, 200000) for _ in range(RUNS)])
    report("dispatch through cffi, nothing there", [per_call(raw, 200000) for _ in range(RUNS)])
    report("Client.poll(), nothing there", [per_call(client.poll, 200000) for _ in range(RUNS)])
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    busy.start()
    report("Client.poll(), beside a busy Python thread", [per_call(client.poll, 20000)
                                                        for _ in range(RUNS)])
    stop.set()
    busy.join()
    ids = np.random.default_rng(1).permutation(BLOCKS)
    small, wide = ids.astype(np.int32), ids.astype(np.int64)
    offsets = (np.arange(PLANES)[:, None] * BLOCKS + ids).ravel() * 4096
    cases = {
        "submit 1 block": lambda: pair.write(Blocks(small[:1], small[:1], planes=0)),
        "submit 23,500 ops: block list, int32": lambda: pair.write(Blocks(small, small)),
        "submit 23,500 ops: block list, int64": lambda: pair.write(Blocks(wide, wide)),
        "submit 23,500 ops: block list, list of int":
            lambda: pair.write(Blocks(ids.tolist(), ids.tolist())),
        "submit 23,500 ops: 94 appends and seal": lambda: streamed(pair, small),
        "submit 23,500 ops: explicit, int64": lambda: pair.write(Ops(offsets, offsets, 4096)),
    }
    for name, make in cases.items():
        report(name, [submits(pair, make) for _ in range(RUNS)])
    report("submit to end, 1 block", [per_call(lambda: pair.write(
        Blocks(small[:1], small[:1], planes=0)).wait(60), 200) for _ in range(RUNS)])
    pair.close()
    node.stop()


main()
