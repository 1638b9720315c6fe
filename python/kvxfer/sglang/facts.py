"""What the pools know and KVArgs does not say: how their pages are cut into heads."""

import contextlib
import contextvars
from typing import Any, Iterator, Optional

from sglang.srt.runtime_context import get_parallel

from .geometry import Facts, Heads

__all__ = ["facts_now", "facts_of", "known"]

_now: "contextvars.ContextVar[Facts]" = contextvars.ContextVar("kvxfer_facts", default=Facts())


def facts_now() -> Facts:
    """Those of the KV manager that is being made; none where nobody has told."""
    return _now.get()


@contextlib.contextmanager
def known(facts: Facts) -> Iterator[None]:
    """While it is entered, KV managers made by this thread are made with ``facts``."""
    token = _now.set(facts)
    try:
        yield
    finally:
        _now.reset(token)


def facts_of(pool: Any, draft_pool: Any, total_kv_heads: int) -> Facts:
    """Of SGLang's memory pools; ``total_kv_heads``: of the model."""
    full = getattr(pool, "full_kv_pool", pool)
    swa = getattr(pool, "swa_kv_pool", None)
    draft = getattr(draft_pool, "full_kv_pool", draft_pool)
    kv = _heads(full, total_kv_heads)
    dsa = full if getattr(full, "kpool_use_compress", False) else None
    tail = int(dsa.index_kpool) + int(getattr(dsa, "tail_extra_slots", 0)) if dsa is not None else 0
    mamba = getattr(pool, "mamba_pool", None)
    conv = [] if mamba is None else mamba.mamba_cache.conv
    return Facts(kv, _heads(swa, total_kv_heads), _heads(draft, None),
                 getattr(pool, "start_layer", None) if full is pool else None, tail,
                 tuple((t.data_ptr(), t.data_ptr() + t.nbytes) for t in conv))


def _heads(pool: Any, total: Optional[int]) -> Optional[Heads]:
    """None where the pages are not simply [tokens][heads] or [heads][tokens]: they are not cut.

    Where the pool has not the model's number of heads (or it is not known), there is one TP rank,
    or every rank has its own heads."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    if type(pool) is not MHATokenToKVPool or pool.is_quantized_kv_cache:
        return None
    order = {"nhd": "NHD", "hnd": "HND"}.get(pool.kv_cache_layout)
    if order is None:
        return None
    tp, tp_size = get_parallel().attn_tp_rank, get_parallel().attn_tp_size
    units = int(pool.head_num)
    if total is not None and units == max(1, total // tp_size):
        return Heads(units, tp * total // tp_size if total < tp_size else tp * units, total, order)
    return Heads(units, 0, units, order) if tp_size == 1 else None
