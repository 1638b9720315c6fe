"""A prefill and a decode engine in one process: prefill writes two blocks of every layer."""

import sys

import numpy as np

import kvxfer

LAYERS, BLOCKS, TOKENS, HEADS, DIM = 4, 8, 16, 8, 128
SHAPE = (LAYERS, 2, BLOCKS, TOKENS, HEADS, DIM)


def engine(name):
    client = kvxfer.Client(sys.argv[1] if len(sys.argv) > 1 else None, name=name)
    memory = kvxfer.Memory(2 * np.prod(SHAPE))  # float16
    kv = memory.numpy("float16", SHAPE)
    region = client.register(memory, layout=kvxfer.layout.split_kv(memory, list(kv)), access="w")
    return client, region, kv


prefill, source, src = engine("prefill")
decode, target, dst = engine("decode")
src[...] = np.random.rand(*SHAPE)
with prefill, decode:
    remote = prefill.open_import(target.export())  # the descriptor goes there by any channel
    blocks = kvxfer.Blocks(np.array([0, 5]), np.array([7, 2]))
    done = prefill.write(source, remote, blocks, tag=42, payload=b"ready").wait()
    arrival = decode.wait()[0]
    print(f"{done.bytes} bytes by {done.transport}; decode got {arrival.payload!r}")
    assert np.array_equal(dst[:, :, [7, 2]], src[:, :, [0, 5]])
