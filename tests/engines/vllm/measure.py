"""Figures: time to first token with and without disaggregation, messages and cost per step.

	python measure.py [--requests N]

Prints a table in Markdown. The engines are tiny and share a few cores with everything else, so
that the figures say what the connector adds, not what a deployment reaches. Takes ten minutes.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any, Dict, List, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import traffic  # noqa: E402
from deployment import Deployment, model_directory  # noqa: E402
from engine import Engine  # noqa: E402

LENGTHS = (128, 512, 1800)
MORE = ["--no-enable-prefix-caching"]


def middle(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return (f"{statistics.median(ordered) * 1e3:.1f} "
            f"({ordered[0] * 1e3:.1f} to {ordered[int(0.95 * (len(ordered) - 1))] * 1e3:.1f})")


def first_token(url: str, length: int, requests: int) -> List[float]:
    """Seconds to the first token of requests one after the other."""
    prompts = traffic.prompts_of(requests + 3, seed=length, length=length)
    answers = traffic.run(url, prompts, 4, at_once=1, stream=True)
    assert all(a.tokens and not a.error for a in answers), [a.error for a in answers if a.error][:2]
    return [a.first_s for a in answers[3:]]


def alone(requests: int, directory: pathlib.Path) -> Dict[int, List[float]]:
    engine = Engine("alone", model_directory("llama-long"), directory / "alone.log", more=MORE)
    try:
        engine.wait_ready()
        return {n: first_token(engine.url, n, requests) for n in LENGTHS}
    finally:
        engine.stop()


def disaggregated(requests: int, **options: Any) -> Dict[int, List[float]]:
    running = Deployment(model="llama-long", more=MORE, **options)
    try:
        return {n: first_token(running.url, n, requests) for n in LENGTHS}
    finally:
        running.close()


def percentiles(times: Sequence[float]) -> str:
    ordered = sorted(times)
    if not ordered:
        return "none"
    return " / ".join(f"{ordered[int(q * (len(ordered) - 1))] * 1e6:.0f}" for q in (0.5, 0.9, 0.99))


def steps(directory: pathlib.Path, requests: int) -> None:
    """Connector time per step, with a clock around each call."""
    times = directory / "times"
    times.mkdir()
    connector = {"kv_connector": "KvxferConnector", "kv_connector_module_path": "timed"}
    env = {"KVX_TIMES": str(times), "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    running = Deployment(model="llama", connector=connector, env=env)
    try:
        traffic.run(running.url, traffic.prompts(20 * requests, seed=3, longest=300), 64, at_once=8)
        running.wait_idle()
    finally:
        running.close()
    print("\n| side | steps | connector per step, us (median / p90 / p99) |\n|---|---|---|")
    for path in sorted(times.iterdir()):
        for kind, values in json.loads(path.read_text()).items():
            print(f"| {path.stem} {kind} | {len(values)} | {percentiles(values)} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=30)
    requests = parser.parse_args().requests
    directory = pathlib.Path(tempfile.mkdtemp(prefix="kvxfer-measure-"))
    columns = {
        "one engine": alone(requests, directory),
        "WRITE, one node": disaggregated(requests),
        "WRITE, two nodes": disaggregated(requests, nodes=2),
        "READ, one node": disaggregated(requests, mode="READ"),
        "READ, two nodes": disaggregated(requests, mode="READ", nodes=2),
    }
    print("Time to first token, ms: median (fastest to 95th percentile)\n")
    print("| prompt | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for n in LENGTHS:
        print(f"| {n} | " + " | ".join(middle(c[n]) for c in columns.values()) + " |")
    steps(directory, requests)


if __name__ == "__main__":
    main()
