"""``KvxferConnector``: vLLM's connector interface on top of Scheduler and Worker.

vLLM makes one in the scheduler's process and one in every worker; each has only its own half.
"""

import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Set, Tuple

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1, KVConnectorHandshakeMetadata, KVConnectorMetadata, KVConnectorRole,
    KVConnectorTransferResults, SupportsHMA)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from . import config as config_
from .meta import StepMeta
from .place import place_of
from .scheduler import Scheduler
from .stats import KvxferPromMetrics, KvxferStats
from .worker import Worker

if TYPE_CHECKING:
    import torch

    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

__all__ = ["KvxferConnector"]

logger = logging.getLogger("vllm.kvxfer")

MADE_FOR = ("0.32.", "0.33.")


class KvxferConnector(KVConnectorBase_V1, SupportsHMA):
    """KV cache between prefill and decode engines, moved by the node's kvxferd."""

    _cache_hit_source = CacheHitSource.P2P

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole,
                 kv_cache_config: "KVCacheConfig") -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        if not vllm.__version__.startswith(MADE_FOR):
            logger.warning("kvxfer: made for vLLM %s*, this is %s", "* and ".join(MADE_FOR),
                           vllm.__version__)
        transfer = self._kv_transfer_config
        scheduling = role is KVConnectorRole.SCHEDULER
        config = config_.read(transfer.kv_connector_extra_config, transfer.engine_id or "",
                              quiet=not scheduling)
        _check_supported(vllm_config)
        self._scheduler: Optional[Scheduler] = None
        self._worker: Optional[Worker] = None
        if scheduling:
            self._scheduler = Scheduler(config, vllm_config, kv_cache_config)
        else:
            place, shards, check = place_of(config, vllm_config)
            if vllm_config.parallel_config.use_ubatching:  # a layer is run for half of the batch
                config = config._replace(stream_layers=0)
            self._worker = Worker(config, place, kv_cache_config, shards, check)

    # ---- scheduler side

    def on_new_request(self, request: "Request") -> None:
        assert self._scheduler is not None
        self._scheduler.on_new_request(request)

    def get_num_new_matched_tokens(self, request: "Request",
                                   num_computed_tokens: int) -> Tuple[Optional[int], bool]:
        assert self._scheduler is not None
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks",
                                 num_external_tokens: int) -> None:
        assert self._scheduler is not None
        self._scheduler.after_alloc(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        assert self._scheduler is not None
        return self._scheduler.step(scheduler_output)

    def request_finished(self, request: "Request",
                         block_ids: List[int]) -> Tuple[bool, Optional[Dict[str, Any]]]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
            self, request: "Request",
            block_ids: Tuple[List[int], ...]) -> Tuple[bool, Optional[Dict[str, Any]]]:
        assert self._scheduler is not None
        return self._scheduler.finished(request, block_ids)

    def get_loaded_kv_cache_group_ids(self, request: "Request") -> Tuple[int, ...]:
        """A request's own blocks are transferred: those of all groups."""
        return tuple(self._kv_cache_config.transfer_group_ids)

    def set_xfer_handshake_metadata_pp_aware(
            self, metadata: Mapping[Tuple[int, int], KVConnectorHandshakeMetadata]) -> None:
        assert self._scheduler is not None
        self._scheduler.set_handshake(metadata)

    # ---- worker side

    def get_mem_pool_context(self) -> Optional[AbstractContextManager[Any]]:
        """On the CPU the KV cache is allocated in shared memory."""
        from vllm.platforms import current_platform

        if self._worker is None or not current_platform.is_cpu():
            return None
        return self._worker.allocation()

    def register_kv_caches(self, kv_caches: Dict[str, "torch.Tensor"]) -> None:
        assert self._worker is not None
        self._worker.register(kv_caches)

    def get_handshake_metadata(self) -> Optional[KVConnectorHandshakeMetadata]:
        assert self._worker is not None
        return self._worker.handshake()

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        assert self._worker is not None and isinstance(kv_connector_metadata, StepMeta)
        self._worker.preempted(kv_connector_metadata)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        assert self._worker is not None
        self._worker.begin(self._meta())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads end between steps: a request is not scheduled before all of its KV is there."""

    def save_kv_layer(self, layer_name: str, kv_layer: "torch.Tensor", attn_metadata: Any,
                      **kwargs: Any) -> None:
        assert self._worker is not None
        self._worker.save_layer(self._meta(), layer_name)

    def wait_for_save(self) -> None:
        assert self._worker is not None
        self._worker.save_rest(self._meta())

    def get_finished(self, finished_req_ids: Set[str]) -> Tuple[Set[str], Set[str]]:
        results = self.get_transfer_results(finished_req_ids)
        return results.finished_sending, results.finished_recving

    def get_transfer_results(self, finished_req_ids: Set[str]) -> KVConnectorTransferResults:
        assert self._worker is not None
        ended = self._worker.finished(finished_req_ids)
        if ended is None:
            return KVConnectorTransferResults()
        return KVConnectorTransferResults(ended.sent, ended.received, ended.failed)

    def get_block_ids_with_load_errors(self) -> Set[int]:
        assert self._worker is not None
        return self._worker.invalid_blocks()

    def get_kv_connector_stats(self) -> Optional["KVConnectorStats"]:
        if self._worker is None or self._worker.stats.is_empty():
            return None
        return self._worker.stats.take()

    def paths(self) -> Dict[str, str]:
        """Peer rank -> transport that the last bytes to or from it took (worker side)."""
        assert self._worker is not None
        return self._worker.paths()

    def counters(self) -> Dict[str, float]:
        """Since the start, of this rank: see ``kvxfer.pd.Rank.stats`` (worker side)."""
        assert self._worker is not None
        return self._worker.counters()

    def _meta(self) -> StepMeta:
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        return meta

    def shutdown(self) -> None:
        if self._worker is not None:
            self._worker.close()

    # ---- of the class

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: Any) -> bool:
        """The registered memory must stay where it is."""
        return False

    @classmethod
    def build_kv_connector_stats(
            cls, data: Optional[Dict[str, Any]] = None) -> Optional["KVConnectorStats"]:
        return KvxferStats(data=data) if data is not None else KvxferStats()

    @classmethod
    def build_prom_metrics(cls, vllm_config: "VllmConfig", metric_types: Dict[Any, Any],
                           labelnames: List[str],
                           per_engine_labelvalues: Dict[int, List[object]]) -> KvxferPromMetrics:
        return KvxferPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def _check_supported(vllm_config: "VllmConfig") -> None:
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise ValueError("KvxferConnector: context parallelism spreads a block's tokens over ranks,"
                         " which it cannot follow: use --decode-context-parallel-size 1 and "
                         "--prefill-context-parallel-size 1")
