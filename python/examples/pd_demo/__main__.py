"""Prefill in one process, decode in another: a real transformer gives the same tokens as in one
process.

    python python/examples/pd_demo [--prompts 50] [--self-test]

Two engines run tiny models of real architectures (Qwen3 and Llama of transformers, PyTorch on the
CPU, random weights of a fixed seed: nothing is downloaded), with a paged KV cache in memory that
kvxferd knows. The prefill engine computes each prompt and sends its KV through kvxferd, streamed
layer by layer, or layer by layer and chunk by chunk, or holds it to be read; the decode engine goes
on from there. Engines with one and with two tensor-parallel ranks are joined in both directions, on
one node (one daemon) and between two. The exit status is 0 only when all greedy tokens of all
prompts are those of one process with the cache of transformers itself. ``--self-test`` changes one
block of one request of every run behind the transfer: then the exit status has to be 1.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time

import torch
from daemons import Daemon, find_daemon
from engine import N_NEW, decode_main, prefill_main
from model import MODELS, build, prompts, whole_run

from kvxfer import pd

MODES = [("write", None, "WRITE by layer"), ("write", 20, "WRITE by layer and chunk"),
         ("read", None, "READ")]
ROW = "{:<6} {:<9} {:<25} {:<6} {:<9} {:>9} {:>7} {:>10}"


class Ranks:
    """The processes of one engine."""

    def __init__(self, main, node, tp_size, models, folder):
        fork = multiprocessing.get_context("fork")
        self.pipes, self.processes = [], []
        store = f"{folder}/{main.__name__}-{os.urandom(4).hex()}"  # where the ranks meet
        for tp in range(tp_size):
            ours, theirs = fork.Pipe()
            process = fork.Process(target=main, daemon=True,
                                   args=(theirs, node, tp, tp_size, models, store))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def send(self, what):
        for pipe in self.pipes:
            pipe.send(what)

    def receive(self):
        """The same kind of answer of every rank."""
        return [self._one(i) for i in range(len(self.pipes))]

    def _one(self, i):
        try:
            return self.pipes[i].recv()
        except EOFError:
            self.processes[i].join()
            sys.exit("an engine process has ended early: see its message above")

    def end(self):
        self.send(None)
        for process in self.processes:
            process.join()


def run(ends, name, model, mode, chunk, n, source, spoil):
    """One run of all prompts. Gives the tokens, and what was moved how."""
    prefill, decode = ends
    prefill.send((name, model, mode, n, chunk))
    decode.send((name, model, mode, n, source, spoil))
    for _ in range(n):
        [(_, token), *_] = prefill.receive()
        decode.send([token])
    prefill.receive()
    answers = [answer for _, answer in decode.receive()]
    return answers[0][0], "+".join(answers[0][1]), sum(answer[2] for answer in answers)


def reference(pipe, models, n):
    torch.set_num_threads(1)
    out = {}
    for name in models:
        model = build(name)
        out[name] = [whole_run(model, prompt, N_NEW) for prompt in prompts(n)]
    pipe.send(out)


def expected_tokens(models, n):
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=reference, args=(theirs, models, n))
    process.start()
    out = ours.recv()
    process.join()
    return out


def arguments():
    parser = argparse.ArgumentParser(prog="pd_demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--tp", nargs="+", default=["1:1", "1:2", "2:1"],
                        help="ranks of prefill:decode (1, 2 or 4 each)")
    parser.add_argument(
    "--kvxferd",
     help="the daemon; default: $KVXFERD, build*/daemon/kvxferd, PATH")
    parser.add_argument("--self-test", action="store_true",
                        help="change a block of each run: the exit status has to be 1")
    parser.add_argument("--verbose", action="store_true", help="show what kvxfer logs")
    return parser.parse_args()


def main():
    args = arguments()
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING)
    torch.set_num_threads(1)
    daemon = find_daemon(args.kvxferd)
    print(f"{args.prompts} prompts, {N_NEW} tokens each, greedy; torch {torch.__version__}, CPU")
    expected = expected_tokens(args.models, args.prompts)
    print(ROW.format("model", "TP", "mode", "nodes", "path", "identical", "MB", "prompts/s"))
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="pd_demo-") as folder:
        nodes = [Daemon(daemon, f"{folder}/node{i}") for i in (1, 2)]
        try:
            for where in (nodes[:1] * 2, nodes):
                for tp in args.tp:
                    wrong += pair_of_engines(args, where, tp, expected, folder)
        finally:
            for node in nodes:
                node.stop()
    print("all tokens are those of one process" if not wrong else
          f"{wrong} requests have other tokens than in one process")
    return 1 if wrong else 0


def pair_of_engines(args, nodes, tp, expected, folder):
    """All models and modes on one pair of engines. Gives the number of requests that are wrong."""
    sizes = [int(size) for size in tp.split(":")]
    ends = [Ranks(main_, node.socket, size, args.models, folder)
            for main_, node, size in zip((prefill_main, decode_main), nodes, sizes)]
    address = ends[0].receive()[0]
    ends[1].receive()
    wrong = 0
    for model in args.models:
        for mode, chunk, title in MODES:
            start = time.monotonic()
            spoil = args.prompts // 2 if args.self_test else None
            out, path, nbytes = run(ends, f"{model}-{title}", model, mode, chunk, args.prompts,
                                             pd.Endpoint(address, "prefill"), spoil)
            same = sum(a == b for a, b in zip(out, expected[model]))
            wrong += args.prompts - same
            print(ROW.format(model, f"TP{sizes[0]}->TP{sizes[1]}", title,
                             2 - (nodes[0] is nodes[1]), path, f"{same}/{args.prompts}",
                             f"{nbytes / 1e6:.1f}",
                             f"{args.prompts / (time.monotonic() - start):.1f}"),
                  flush=True)
    for end in ends:
        end.end()
    return wrong


if __name__ == "__main__":
    sys.exit(main())
