"""Transfer statistics in vLLM's terms: the periodic log line and Prometheus.

``data`` is what travels from the workers through the scheduler to the API server: plain lists and
dicts. Times in seconds.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics, KVConnectorStats)

from ..pd import Outcome

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["KvxferPromMetrics", "KvxferStats"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            30.0)
_BYTES = tuple(float(2 ** n) for n in range(12, 36, 2))


@dataclass
class KvxferStats(KVConnectorStats):
    """What has ended since the last report.

    data["seconds"], data["bytes"]: one number per request and rank that moved something; of the
    decode side from its asking for the KV to having it all, of the prefill side from the first
    block to the last. data["transports"]: transport -> bytes. data["failed"]: status -> count.
    data["blocks_lost"]: blocks that a decode rank got no valid KV for.
    """

    def __post_init__(self) -> None:
        if not self.data:
            self.reset()

    def reset(self) -> None:
        self.data: Dict[str, Any] = {"seconds": [], "bytes": [], "transports": {}, "failed": {},
                                     "blocks_lost": 0}

    def record(self, outcome: Outcome) -> None:
        """Counts one end."""
        if outcome.error is not None:
            status = outcome.error.status.name if outcome.error.status else "UNKNOWN"
            self.data["failed"][status] = self.data["failed"].get(status, 0) + 1
            self.data["blocks_lost"] += sum(len(ids) for ids in outcome.blocks.values())
        elif outcome.nbytes:
            self.data["seconds"].append(outcome.seconds)
            self.data["bytes"].append(outcome.nbytes)
        if outcome.nbytes:
            path = "+".join(outcome.transports) or "unknown"
            paths = self.data["transports"]
            paths[path] = paths.get(path, 0) + outcome.nbytes

    def take(self) -> "KvxferStats":
        """What was counted, and begins anew."""
        taken = KvxferStats(data=self.data)
        self.reset()
        return taken

    def is_empty(self) -> bool:
        return not (self.data["seconds"] or self.data["failed"] or self.data["transports"])

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        if not other.is_empty():
            self.data["seconds"] += other.data["seconds"]
            self.data["bytes"] += other.data["bytes"]
            for key in ("transports", "failed"):
                self.data[key] = dict(Counter(self.data[key]) + Counter(other.data[key]))
            self.data["blocks_lost"] += other.data["blocks_lost"]
        return self

    def reduce(self) -> Dict[str, Any]:
        seconds, nbytes = sorted(self.data["seconds"]), self.data["bytes"]
        words: Dict[str, Any] = {"Num successful transfers": len(seconds)}
        if seconds:
            words["Avg xfer time (ms)"] = round(sum(seconds) / len(seconds) * 1e3, 3)
            words["P90 xfer time (ms)"] = round(seconds[int(0.9 * (len(seconds) - 1))] * 1e3, 3)
            words["Avg MB per transfer"] = round(sum(nbytes) / len(nbytes) / 2**20, 3)
            words["Throughput (MB/s)"] = round(sum(nbytes) / 2**20 / max(sum(seconds), 1e-9), 3)
        for path, n in sorted(self.data["transports"].items()):
            words[f"MB by {path}"] = round(n / 2**20, 3)
        words["Num failed transfers"] = sum(self.data["failed"].values())
        for status, n in sorted(self.data["failed"].items()):
            words[f"failed with {status}"] = n
        return words


class KvxferPromMetrics(KVConnectorPromMetrics):
    """vllm:kvxfer_* at /metrics."""

    def __init__(self, vllm_config: "VllmConfig", metric_types: Dict[Any, Any],
                 labelnames: List[str],
                 per_engine_labelvalues: Dict[int, List[object]]) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        histogram: Any = self._histogram_cls
        counter: Any = self._counter_cls
        self._seconds = histogram(
            name="vllm:kvxfer_transfer_seconds", buckets=_SECONDS, labelnames=labelnames,
            documentation="Time of KV cache transfers by kvxfer, per request and rank.")
        self._bytes = histogram(
            name="vllm:kvxfer_transfer_bytes", buckets=_BYTES, labelnames=labelnames,
            documentation="Bytes of KV cache transfers by kvxfer, per request and rank.")
        self._by_path = counter(
            name="vllm:kvxfer_bytes", labelnames=labelnames + ["transport"],
            documentation="Bytes of KV cache moved by kvxfer, by transport.")
        self._failed = counter(
            name="vllm:kvxfer_failed_transfers", labelnames=labelnames + ["status"],
            documentation="KV cache transfers of kvxfer that failed, by status.")
        self._lost = counter(
            name="vllm:kvxfer_lost_blocks", labelnames=labelnames,
            documentation="Blocks that failed transfers left without valid KV cache.")

    def observe(self, transfer_stats_data: Dict[str, Any], engine_idx: int = 0) -> None:
        labels = self.per_engine_labelvalues[engine_idx]
        for metric, key in ((self._seconds, "seconds"), (self._bytes, "bytes")):
            child = metric.labels(*labels)
            for value in transfer_stats_data[key]:
                child.observe(value)
        for metric, key in ((self._by_path, "transports"), (self._failed, "failed")):
            for word, n in transfer_stats_data[key].items():
                metric.labels(*labels, word).inc(n)
        if transfer_stats_data["blocks_lost"]:
            self._lost.labels(*labels).inc(transfer_stats_data["blocks_lost"])
