"""The two engines: one process per tensor-parallel rank. They are told what to do, and tell what
became of it, through a pipe of the parent, which stands for the proxy in front of them."""

import os

import torch
import torch.distributed as dist
from model import build, heads_of, prompts, step
from paged import Pages, Sequence

from kvxfer import pd

BLOCK_TOKENS = 8
N_BLOCKS = 96  # fewer than all requests need at once: blocks are reused as soon as they are free
N_NEW = 16
AHEAD = 4  # requests for which decode asks before it needs them
DEADLINE_S = 120


class Engine:
    """One rank: its share of each model, its pages, and its place in kvxfer."""

    def __init__(self, pipe, name, node, tp, tp_size, models, store):
        torch.set_num_threads(1)
        if tp_size > 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=tp,
                                    world_size=tp_size)
        self.pipe = pipe
        self.models = {model: build(model, tp, tp_size) for model in models}
        config = next(iter(self.models.values())).config
        first, heads = heads_of(tp, tp_size)
        self.pages = Pages(config.num_hidden_layers, N_BLOCKS, BLOCK_TOKENS, heads, config.head_dim,
                           f"{name}{tp}")
        self.rank = pd.Rank(name, tp=tp, tp_size=tp_size, socket=node,
                            check={"kv": f"float32 x {config.head_dim}"})
        self.rank.serve(self.pages.pool(first, config.num_key_value_heads))
        self.owned = {}  # request -> blocks that are free when it has ended
        self.done = {}
        pipe.send(self.rank.address)

    def collect(self, timeout):
        """Takes what has ended; blocks are free from here on, not earlier."""
        for outcome in self.rank.wait(timeout):
            self.done[outcome.id] = outcome
            if outcome.role in ("offer", "hold"):
                self.pages.give_back(self.owned.pop(outcome.id))
            if outcome.error is not None:
                raise outcome.error

    def take(self, n):
        while len(self.pages.free) < n:
            self.collect(DEADLINE_S)
        return self.pages.take(n)


def prefill_main(pipe, *args):
    """Runs prompts, sends or holds their KV, and tells the first token of each."""
    engine = Engine(pipe, "prefill", *args)
    while True:
        job = pipe.recv()
        if job is None:
            break
        run, model, mode, n, chunk = job
        for i, prompt in enumerate(prompts(n)):
            prefill(engine, engine.models[model], f"{run}.{i}", prompt, mode, chunk)
        while engine.owned:
            engine.collect(DEADLINE_S)
        pipe.send(("done", summary(engine)))
    engine.rank.close()


def prefill(engine, model, id_, prompt, mode, chunk):
    pages = engine.pages
    blocks = engine.take(pages.blocks_of(len(prompt)))
    engine.owned[id_] = blocks
    offer = engine.rank.offer(id_, deadline=DEADLINE_S) if mode == "write" else None
    sent = {}  # layer -> blocks that were added

    def on_layer(layer, n_tokens):
        """A layer of a chunk is computed: its full blocks go out, behind the last chunk all do."""
        first = sent.get(layer, 0)
        end = len(blocks) if n_tokens == len(prompt) else n_tokens // BLOCK_TOKENS
        if offer is not None and end > first:
            offer.add(0, first, blocks[first:end], layers=range(layer, layer + 1))
            sent[layer] = end

    sequence = Sequence(pages, blocks, on_layer=on_layer)
    for at in range(0, len(prompt), chunk or len(prompt)):
        token = step(model, prompt[at:at + (chunk or len(prompt))], sequence)
    if offer is not None:
        offer.seal()
    else:
        engine.rank.hold(id_, {0: (0, blocks)}, deadline=DEADLINE_S)
    engine.pipe.send(("first", token))
    engine.collect(0)


def decode_main(pipe, *args):
    """Gets the KV of prompts, and goes on from the first token of each."""
    engine = Engine(pipe, "decode", *args)
    while True:
        job = pipe.recv()
        if job is None:
            break
        run, model, mode, n, source, spoil = job
        todo = prompts(n)
        blocks, out = {}, []
        for i, prompt in enumerate(todo):
            if mode == "write":  # asks early: the other side may not have begun
                for j in range(i, min(i + AHEAD, n)):
                    ask(engine, engine.rank.expect, blocks, run, j, todo[j], source)
            [token] = pipe.recv()
            if mode == "read":
                ask(engine, engine.rank.fetch, blocks, run, i, prompt, source)
            while f"{run}.{i}" not in engine.done:
                engine.collect(DEADLINE_S)
            if i == spoil:
                engine.pages.k[1, blocks[i][0]] += 3.0
            out.append(decode(engine, engine.models[model], blocks.pop(i), prompt, token))
        pipe.send(("done", (out, *summary(engine))))
    engine.rank.close()


def ask(engine, call, blocks, run, i, prompt, source):
    if i in blocks:
        return
    blocks[i] = engine.take(engine.pages.blocks_of(len(prompt) + N_NEW))
    wanted = blocks[i][:engine.pages.blocks_of(len(prompt))]
    call(f"{run}.{i}", source, {0: (0, wanted)}, deadline=DEADLINE_S)


def decode(engine, model, blocks, prompt, token):
    sequence = Sequence(engine.pages, blocks, n_tokens=len(prompt))
    tokens = [token]
    while len(tokens) < N_NEW:
        tokens.append(step(model, tokens[-1:], sequence))
    for which in (engine.pages.k, engine.pages.v):
        which[:, blocks] = float("nan")  # stale KV shall not look like new
    engine.pages.give_back(blocks)
    return tokens


def summary(engine):
    """Transports and bytes of the requests of a run."""
    done, engine.done = list(engine.done.values()), {}
    return (sorted({transport for outcome in done for transport in outcome.transports}),
            sum(outcome.nbytes for outcome in done))
