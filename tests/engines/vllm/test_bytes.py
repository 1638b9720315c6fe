"""What tokens cannot show: blocks in the decode engine's memory are those of the prefill engine.

For latent attention with different tensor-parallel sizes (see test_tokens.at_once). Both engines'
KV caches are shared memory of the workers, which is looked at through /proc.
"""

import hashlib
import mmap
import os
import pathlib
from typing import Any, Dict, List, Set

import pytest

import traffic
from deployment import Deployment
from engine import Engine
from processes import children

LAYERS, LATENT_BYTES = 4, 576 * 4  # of the model: float32
BLOCK = 16  # tokens: what vLLM takes for latent attention on the CPU, whatever it is told
BLOCK_BYTES = BLOCK * LATENT_BYTES
FULL_BLOCKS = 16
MEMORY = "memfd:kvxfer-vllm"

CASES: Dict[str, Dict[str, Any]] = {
    "write-tp1-tp2": {"prefill_tp": 1, "decode_tp": 2},
    "write-tp2-tp1-two-nodes": {"prefill_tp": 2, "decode_tp": 1, "nodes": 2},
    "read-tp1-tp2": {"mode": "READ", "prefill_tp": 1, "decode_tp": 2},
    "read-tp2-tp1-two-nodes": {"mode": "READ", "prefill_tp": 2, "decode_tp": 1, "nodes": 2},
}
pytestmark = pytest.mark.parametrize(
    "deployment", [pytest.param(dict(options, model="deepseek"), id=name)
                   for name, options in CASES.items()], indirect=True)


def caches(engine: Engine) -> List[pathlib.Path]:
    """The KV cache of each worker, by rank."""
    found: Dict[str, pathlib.Path] = {}
    for pid, line in sorted(children(engine.process.pid).items()):
        for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            if line.startswith("VLLM::Worker") and os.readlink(fd).startswith(f"/{MEMORY}"):
                found.setdefault(line, fd)
    return [found[line] for line in sorted(found)]


def contents(cache: pathlib.Path) -> List[Set[bytes]]:
    """Per layer: digests of all blocks that are not zero."""
    zero = bytes(BLOCK_BYTES)
    with open(cache, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        per_layer = len(memory) // LAYERS // BLOCK_BYTES
        found: List[Set[bytes]] = []
        for layer in range(LAYERS):
            start = layer * per_layer * BLOCK_BYTES
            blocks = (memory[start + i * BLOCK_BYTES:start + (i + 1) * BLOCK_BYTES]
                      for i in range(per_layer))
            found.append({hashlib.sha256(b).digest() for b in blocks if b != zero})
    return found


def test_latents_are_the_same_bytes(deployment: Deployment) -> None:
    """Every full block of every prompt is in every decode rank's memory, layer by layer."""
    count = 20
    wanted = traffic.prompts_of(count, seed=70, length=FULL_BLOCKS * BLOCK + 1)
    answers = traffic.run(deployment.url, wanted, 2)
    assert not any(a.error for a in answers), [a.error for a in answers if a.error][:2]
    deployment.wait_idle()
    source = contents(caches(deployment.prefill)[0])
    ranks = caches(deployment.decode)
    assert len(ranks) == deployment.decode_tp
    for rank, cache in enumerate(ranks):
        for layer, (have, due) in enumerate(zip(contents(cache), source)):
            same = len(have & due)
            assert same >= count * FULL_BLOCKS, (
                f"rank {rank}, layer {layer}: {same} of {count * FULL_BLOCKS} blocks are the same")
