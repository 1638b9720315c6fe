"""The KV cache of a rank: pages in a kvxfer.Memory, and the cache of transformers that stores into
them.

Every key and value that attention sees comes from these pages, whether this process has computed it
or another one has sent it.
"""

import random

import torch
from transformers.cache_utils import Cache, DynamicLayer

import kvxfer
from kvxfer import pd


class Pages:
    """``k[layer]`` and ``v[layer]``: [block, token, head, dim]; and the list of free blocks, out of
    order as after a long run."""

    def __init__(self, n_layers, n_blocks, block_tokens, heads, head_dim, seed):
        shape = (n_layers, 2, n_blocks, block_tokens, heads, head_dim)
        self.block_tokens = block_tokens
        self.memory = kvxfer.Memory(4 * torch.Size(shape).numel(), name="pd_demo")
        kv = self.memory.torch(torch.float32, shape)
        kv.fill_(float("nan"))  # whoever reads what was never written shall notice
        self.k, self.v = kv[:, 0], kv[:, 1]
        self.free = random.Random(seed).sample(range(n_blocks), n_blocks)

    def pool(self, first_head, total_heads):
        """What kvxfer.pd has to know about it."""
        n_layers, n_blocks, tokens, heads, dim = self.k.shape
        part = {"unit_bytes": 4 * dim, "units": heads, "first_unit": first_head,
                "total_units": total_heads, "order": "NHD"}
        group = pd.Group("attention", tuple(f"model.layers.{i}" for i in range(n_layers)), tokens,
                         n_blocks, (pd.Part("k", **part), pd.Part("v", **part)))
        planes = {(0, layer, i): (self.memory, which[layer])
                  for layer in range(n_layers) for i, which in enumerate((self.k, self.v))}
        return pd.Pool.of([group], planes)

    def blocks_of(self, n_tokens):
        """How many blocks hold so many tokens."""
        return -(-n_tokens // self.block_tokens)

    def take(self, n):
        return [self.free.pop() for _ in range(n)]

    def give_back(self, blocks):
        self.free = list(blocks) + self.free


class PagedLayer(DynamicLayer):
    """One layer of one sequence."""

    def __init__(self, sequence, layer):
        super().__init__()
        self.sequence, self.layer = sequence, layer
        self.n_tokens = sequence.n_tokens
        self.is_initialized = True

    def get_seq_length(self, *_):
        return self.n_tokens

    def update(self, key_states, value_states, *_, **__):
        """Stores new tokens ([1, head, token, dim]) and gives all of the sequence."""
        pages, at = self.sequence.pages, self.n_tokens
        self.n_tokens += key_states.shape[-2]
        slots = self.sequence.slots(self.n_tokens)
        out = []
        for states, store in ((key_states, pages.k), (value_states, pages.v)):
            rows = store[self.layer].flatten(0, 1)
            rows[slots[at:]] = states[0].transpose(0, 1)
            out.append(rows[slots].transpose(0, 1).unsqueeze(0))
        self.sequence.on_layer(self.layer, self.n_tokens)
        return tuple(out)


class Sequence(Cache):
    """The KV of one request: its blocks, of which the first ``n_tokens`` tokens are there.
    ``on_layer(layer, n)``: so many tokens of a layer are in the pages now."""

    def __init__(self, pages, blocks, n_tokens=0, on_layer=lambda layer, n: None):
        self.pages, self.blocks, self.n_tokens, self.on_layer = pages, blocks, n_tokens, on_layer
        size = pages.block_tokens
        self._slots = (torch.tensor(blocks).unsqueeze(1) * size + torch.arange(size)).flatten()
        super().__init__(layers=[PagedLayer(self, i) for i in range(len(pages.k))])

    def slots(self, n):
        """Rows of the first n tokens in the pages."""
        return self._slots[:n]
