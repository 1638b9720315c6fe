"""Which rank of which engine a worker is, and what it shares with the other side: from vLLM's
configuration and its process groups."""

import logging
from typing import TYPE_CHECKING, Any, Dict, Tuple

from .config import Config
from .geometry import Shards
from .worker import Place

if TYPE_CHECKING:
    from vllm.config import VllmConfig

__all__ = ["place_of"]

logger = logging.getLogger("vllm.kvxfer")


def place_of(config: Config, vllm_config: "VllmConfig") -> Tuple[Place, Shards, Dict[str, str]]:
    """(place, shards, words that must be equal on both sides) of this worker process."""
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    transfer = vllm_config.kv_transfer_config
    assert transfer is not None
    tp, pp = _ranks(parallel.rank, parallel.tensor_parallel_size)
    # An engine behind one server registers once; where each data-parallel rank has a server of its
    # own, each does.
    first = parallel.data_parallel_rank == 0 or parallel.data_parallel_external_lb
    place = Place(
        tp, parallel.tensor_parallel_size, pp, parallel.pipeline_parallel_size,
        parallel.data_parallel_rank, parallel.data_parallel_size, _host(config),
        producer=transfer.is_kv_producer, registers=first and tp == 0 and pp == 0)
    backends = _backends(vllm_config)
    shards = Shards(tp, parallel.tensor_parallel_size, model.get_total_num_kv_heads(), backends,
                    _columns_first(), _state_groups(model.hf_text_config))
    check = {"model": "/".join(model.architectures),
             "layers": str(model.get_total_num_hidden_layers()),
             "heads": str(model.get_total_num_kv_heads()), "head_size": str(model.get_head_size()),
             "dtype": str(model.dtype), "kv_dtype": str(vllm_config.cache_config.cache_dtype)}
    if config.check_backend:
        check["backend"] = "/".join(backends)
    return place, shards, check


def _ranks(rank: int, tp_size: int) -> Tuple[int, int]:
    from vllm.distributed import parallel_state as state

    parallel_state: Any = state  # untyped in part
    if parallel_state.model_parallel_is_initialized():
        return (int(parallel_state.get_tp_group().rank_in_group),
                int(parallel_state.get_pp_group().rank_in_group))
    return rank % tp_size, rank // tp_size


def _host(config: Config) -> str:
    from vllm.utils.network_utils import get_ip

    return config.host_ip or str(get_ip())


def _backends(vllm_config: "VllmConfig") -> Tuple[str, ...]:
    """Names of the attention backends; (): not known."""
    from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends

    try:
        return tuple(sorted({backend.get_name()
                             for backend in get_current_attn_backends(vllm_config)}))
    except Exception as err:  # of any backend's selection
        logger.warning("kvxfer: attention backends unknown (%s): not compared with peers'", err)
        return ()


def _columns_first() -> bool:
    from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first

    return bool(is_conv_state_dim_first())


def _state_groups(hf_config: Any) -> int:
    """Groups of B and C of a Mamba2 model, under the name that its configuration has for them."""
    for name in ("mamba_n_groups", "mamba_ngroups", "n_groups"):
        groups = getattr(hf_config, name, None)
        if isinstance(groups, int) and groups > 0:
            return groups
    return 0
