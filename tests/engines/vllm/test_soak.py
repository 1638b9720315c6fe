"""Many requests: nothing grows. KVX_SOAK sets how many (default 1,000; releases take 10,000)."""

import os
import time
from typing import Any, Dict, List

import pytest

import traffic
from conftest import Truth
from deployment import Deployment

COUNT = int(os.environ.get("KVX_SOAK", "1000"))
TOKENS = 2
AT_ONCE = 32
GROWTH = 40 << 20  # bytes of resident memory per process that are not held to be a leak
CASES: Dict[str, Dict[str, Any]] = {"write-two-nodes": {"nodes": 2}, "read": {"mode": "READ"}}

pytestmark = pytest.mark.parametrize(
    "deployment", [pytest.param(options, id=name) for name, options in CASES.items()],
    indirect=True)


def sizes(deployment: Deployment) -> Dict[str, Dict[str, int]]:
    """Resident memory and descriptors of every process of the deployment."""
    processes = [e.process for e in deployment.engines] + [n.daemon for n in deployment.nodes]
    found: Dict[str, Dict[str, int]] = {"rss": {}, "fds": {}}
    for process in processes:
        for key, value in process.rss_bytes().items():
            found["rss"][f"{process.name} {key}"] = value
        for key, value in process.fds().items():
            found["fds"][f"{process.name} {key}"] = value
    return found


def grown(before: Dict[str, int], after: Dict[str, int], allowed: int) -> List[str]:
    return [f"{key}: {before[key]} -> {value}" for key, value in after.items()
            if key in before and value > before[key] + allowed]


def batch(deployment: Deployment, truth: Truth, count: int, seed: int) -> None:
    wanted = traffic.prompts(200, seed=seed, longest=100)
    right = truth.of(deployment.model, wanted, TOKENS)
    many = [wanted[i % len(wanted)] for i in range(count)]
    answers = traffic.run(deployment.url, many, TOKENS + 1, AT_ONCE, timeout=600)
    wrong = [(i, a.error) for i, a in enumerate(answers) if a.tokens != right[i % len(wanted)]]
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:3]}\n{deployment.logs()}"


def test_nothing_grows(deployment: Deployment, truth: Truth) -> None:
    """The first requests warm caches up; then memory and descriptors stay."""
    batch(deployment, truth, min(COUNT, 2000), seed=50)
    deployment.wait_idle()
    before = sizes(deployment)
    begin = time.monotonic()
    batch(deployment, truth, COUNT, seed=50)
    took = time.monotonic() - begin
    deployment.wait_idle()
    after = sizes(deployment)
    print(f"{COUNT} requests in {took:.0f} s, {COUNT / took:.0f} a second")
    for key, value in after["rss"].items():
        was = before["rss"].get(key, 0)
        print(f"{key}: {was >> 20} -> {value >> 20} MiB, {after['fds'].get(key)} descriptors "
              f"(before: {before['fds'].get(key)})")
    assert not grown(before["rss"], after["rss"], GROWTH)
    assert not grown(before["fds"], after["fds"], 4)
    for node in deployment.nodes:
        assert node.live_transfers() == 0
