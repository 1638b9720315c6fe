"""The connector with a clock around every call, for measure.py: what it costs an engine per step.

Loaded by the engine in place of kvxfer.vllm. Writes KVX_TIMES/<role>-<pid>.json every 500 steps:
seconds per step of quiet steps (nothing to send, receive or end) and of others.
"""

import json
import os
import pathlib
import time
from typing import Any, Callable, Dict, List

from kvxfer.vllm import KvxferConnector as Connector

CALLS = {
    "worker": ["handle_preemptions", "start_load_kv", "wait_for_layer_load", "save_kv_layer",
               "wait_for_save", "get_transfer_results", "get_block_ids_with_load_errors",
               "get_kv_connector_stats"],
    "scheduler": ["get_num_new_matched_tokens", "update_state_after_alloc", "on_new_request",
                  "request_finished_all_groups", "build_connector_meta"],
}
LAST = {"worker": "get_kv_connector_stats", "scheduler": "build_connector_meta"}
EVERY = 500


class KvxferConnector(Connector):
    """As its base; adds up the time of a step's calls."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._what = role.name.lower()
        self._sum, self._steps = 0.0, 0
        self._times: Dict[str, List[float]] = {"quiet": [], "busy": []}
        self._busy = False
        for name in CALLS[self._what]:
            setattr(self, name, self._clocked(name, getattr(super(), name)))

    def _clocked(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        last = name == LAST[self._what]

        def clocked(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = call(*args, **kwargs)
            self._sum += time.perf_counter() - begin
            if name == "get_transfer_results":
                self._busy = bool(self._busy or result.finished_sending or result.finished_recving)
            if name in ("update_state_after_alloc", "request_finished_all_groups"):
                self._busy = True
            if name == "start_load_kv":
                meta = self._get_connector_metadata()
                self._busy = self._busy or any(vars(meta).values())
            if last:
                self._end_step()
            return result
        return clocked

    def _end_step(self) -> None:
        self._times["busy" if self._busy else "quiet"].append(self._sum)
        self._sum, self._busy = 0.0, False
        self._steps += 1
        if self._steps % EVERY == 0:
            path = pathlib.Path(os.environ["KVX_TIMES"]) / f"{self._what}-{os.getpid()}.json"
            path.write_text(json.dumps(self._times))
