#!/usr/bin/env python3
"""Instructions of the daemon per op, from the frame to the copy call, on the stand-in GPU runtime.

usage: instructions.py BUILD [--blocks N] [--bytes N] [--release cuda] [--limit 600]

Runs the daemon under callgrind with two numbers of transfers and divides the difference by the ops
between: what is done once cancels out. The stand-in copies nothing and is not counted, nor is the
polling of workers that have nothing to do (whole turns without work). Prints what each function
takes; exit status 1 when the sum is over the limit.
"""
import argparse
import collections
import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

# Looking for work, and waiting: how often depends on the machine's speed, not on the ops.
POLLING = {"kvx_worker_turn", "worker_loop", "spin_pause", "worker_sleep", "kvx_now_ns", "kvx_ring_pop",
           "kvx_ring_empty", "kvx_worker_calls_finish", "kvx_worker_calls_returned", "gpu_progress", "gpu_arm",
           "copy_progress", "fabric_progress", "kvx_worker_has_chores", "cuda_event_query", "hip_event_query",
           "gpu_err", "kvx_worker_main", "worker_progress", "kvx_worker_notes_flush"}


def run(build, args, n_transfers):
    """Ir by (object, function) of one daemon's life with so many transfers."""
    libraries = build / "tests/gpu/standin" / args.release
    standin = ctypes.CDLL(str(build / "tests/gpu/standin/libkvxgpustandin.so"))
    standin.standin_create(2, ctypes.c_uint64(1 << 30))
    standin.standin_path.restype = ctypes.c_char_p
    env = dict(os.environ, LD_LIBRARY_PATH=str(libraries),
               KVX_GPU_STANDIN=standin.standin_path().decode(),
               KVX_TEST_GPU="hip" if args.release.startswith("hip") else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        socket, out = f"{folder}/sock", f"{folder}/callgrind.out"
        daemon = subprocess.Popen(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--quiet",
             str(build / "daemon/kvxferd"), "--socket", socket, "--set", "peer.enable=false",
             "--set", "copy.workers=1", "--set", f"gpu.gather_max_bytes={args.gather}",
             "--set", "daemon.node_id_file="], env=env, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while not os.path.exists(socket):
            if daemon.poll() is not None or time.monotonic() > end:
                sys.exit("the daemon does not start under valgrind")
            time.sleep(0.1)
        subprocess.run([str(build / "tests/gpu/bench_ops"), socket, str(n_transfers),
                        str(args.blocks), str(args.bytes), "0", "1"], env=env, check=True)
        daemon.terminate()
        daemon.wait(120)
        standin.standin_destroy()
        return read(out)


RUNTIME = re.compile(r"standin|lib(cuda|amdhip64)")


def read(path):
    """Self cost by (object, function), without the runtime's and what that calls: callgrind's own
    format, with its compressed names."""
    names = {"ob": {}, "fn": {}}
    costs = collections.Counter()
    caller, callee = ["", ""], ["", ""]
    is_call = False
    for line in open(path, encoding="utf-8"):
        match = re.match(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?$", line)
        if match:
            call, kind, key, name = match.groups()
            if name is not None:
                names[kind][key] = name.strip()
            where = callee if call else caller
            where[0 if kind == "ob" else 1] = names[kind].get(key, "")
            if not call:
                callee[0] = caller[0]
        elif line.startswith("calls="):
            is_call = True  # the line behind it is the callee's inclusive cost
        elif re.match(r"[+*\-\d]", line):
            cost = int(line.split()[1])
            if not is_call and not RUNTIME.search(caller[0]):
                costs[tuple(caller)] += cost
            elif is_call and RUNTIME.search(caller[0]) and not RUNTIME.search(callee[0]):
                costs["", "(of these: called by the runtime)"] -= cost
            is_call, callee[0] = False, caller[0]
    return costs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("--blocks", type=int, default=4096)
    parser.add_argument("--bytes", type=int, default=16384)
    parser.add_argument("--release", default="cuda")
    parser.add_argument("--gather", default="0")
    parser.add_argument("--limit", type=float, default=600)
    args = parser.parse_args()
    args.build = args.build.resolve()
    few, many = 4, 14
    before, after = run(args.build, args, few), run(args.build, args, many)
    per_op = {}
    for key, cost in after.items():
        per_op[key] = (cost - before[key]) / ((many - few) * args.blocks)
    counted = {key: cost for key, cost in per_op.items() if key[1].split("'")[0] not in POLLING}
    for key, cost in sorted(counted.items(), key=lambda item: -abs(item[1]))[:25]:
        print(f"{cost:8.1f}  {key[1]}  ({os.path.basename(key[0])})")
    total = sum(counted.values())
    print(f"{total:8.1f}  instructions per op, {args.blocks} ops of {args.bytes} bytes, on the stand-in "
          f"({args.release}); polling apart: {sum(per_op.values()) - total:.1f}")
    return 1 if total > args.limit else 0


sys.exit(main())
