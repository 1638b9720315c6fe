"""A `vllm serve` process on the CPU, as an operator would start it, only smaller."""

import json
import os
import pathlib
import sys
import urllib.request
from typing import Any, Dict, Mapping, Optional, Sequence

from processes import Process, free_port, http_ok, wait_until

START_S = 240.0
SERVED = "tiny"
BLOCK = 32
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONUNBUFFERED": "1",
}


class Engine:
    """One engine instance. `kv` is the content of --kv-transfer-config, None for none."""

    def __init__(self, name: str, model: pathlib.Path, log: pathlib.Path, *,
                 host: str = "127.0.0.1", port: int = 0, tp: int = 1,
                 kv: Optional[Mapping[str, Any]] = None,
                 socket: str = "", blocks: int = 1024, more: Sequence[str] = (),
                 env: Optional[Mapping[str, str]] = None):
        self.name = name
        self.host, self.port = host, port or free_port(host)
        self.url = f"http://{self.host}:{self.port}"
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model),
                   "--served-model-name", SERVED, "--host", self.host, "--port", str(self.port),
                   "--enforce-eager", "--dtype", "float32", "--max-model-len", "2048",
                   "--tensor-parallel-size", str(tp), "--num-gpu-blocks-override", str(blocks),
                   "--kv-cache-memory-bytes", str(256 << 20)]
        if not any(arg.startswith("--block-size") for arg in more):
            command += ["--block-size", str(BLOCK)]
        if kv is not None:
            command += ["--kv-transfer-config", json.dumps(kv)]
        command += more
        settings = dict(QUIET, VLLM_HOST_IP=self.host)
        if socket:
            settings["KVXFER_SOCKET"] = socket
        if os.environ.get("KVX_ENGINE_PYTHONPATH"):
            settings["PYTHONPATH"] = os.environ["KVX_ENGINE_PYTHONPATH"]
        settings.update(env or {})
        self.process = Process(f"engine {name}", command, log, settings)

    def wait_ready(self) -> float:
        return self.process.wait_ready(START_S, lambda: http_ok(f"{self.url}/health"))

    def healthy(self) -> bool:
        return self.process.alive() and http_ok(f"{self.url}/health")

    def metrics_text(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    def metrics(self) -> Dict[str, float]:
        """Prometheus samples: name -> sum over its label sets (buckets left out)."""
        found: Dict[str, float] = {}
        for line in self.metrics_text().splitlines():
            if line.startswith("#") or "_bucket{" in line or "_created" in line:
                continue
            name, _, value = line.rpartition(" ")
            name = name.split("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def prompt_tokens(self, source: str) -> int:
        """Prompt tokens so far whose KV was made by `source`: local_compute, local_cache_hit, or
        external_kv_transfer."""
        found = self.samples("vllm:prompt_tokens_by_source_total", f'source="{source}"')
        return int(sum(found.values()))

    def samples(self, name: str, label: str = "") -> Dict[str, float]:
        """The samples of one metric (those with `label`), by their label text."""
        found = {}
        for line in self.metrics_text().splitlines():
            if line.startswith(name) and line[len(name)] in "{ " and label in line:
                labels, _, value = line[len(name):].rpartition(" ")
                found[labels] = float(value)
        return found

    def idle(self) -> bool:
        """Nothing runs, nothing waits, no KV block is in use."""
        m = self.metrics()
        return (m["vllm:num_requests_running"] == 0 and m["vllm:num_requests_waiting"] == 0
                and m["vllm:kv_cache_usage_perc"] == 0)

    def wait_idle(self, seconds: float = 30.0) -> float:
        """Blocks until idle(); AssertionError tells what is still held."""
        try:
            return wait_until(f"{self.name} idle", seconds, self.idle, 0.1)
        except AssertionError as error:
            m = self.metrics()
            held = {k: v for k, v in m.items() if k in (
                "vllm:num_requests_running", "vllm:num_requests_waiting",
                "vllm:kv_cache_usage_perc")}
            raise AssertionError(f"{error}: {held}") from None

    def log(self) -> str:
        return self.process.log()

    def kill(self, only: str = "") -> None:
        self.process.kill(only)

    def restart(self) -> None:
        """Starts it again, with the same ports, after kill() or stop(). Blocks until it serves."""
        self.process.start()
        self.wait_ready()

    def stop(self) -> None:
        self.process.stop()
