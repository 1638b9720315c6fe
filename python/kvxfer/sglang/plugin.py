"""How SGLang learns about the transfer backend "kvxfer", without a change to its files.

SGLang loads the entry points of the group ``sglang.srt.plugins`` in each of its processes, before
it reads its command line, and gives them a registry of hooks. :func:`register` adds a choice to
``--disaggregation-transfer-backend``, a member to ``TransferBackend``, the four classes to
``get_kv_class``; in the scheduler's processes it also sees to it that pools on the CPU and metadata
buffers are made in shared memory, and tells the KV manager what KVArgs does not say.
"""

import enum
import sys
from typing import Any, Dict

__all__ = ["NAME", "register"]

NAME = "kvxfer"
_CLASSES = {
    "manager": ("manager", "KvxferKVManager"),
    "sender": ("sender", "KvxferKVSender"),
    "receiver": ("receiver", "KvxferKVReceiver"),
    "bootstrap_server": ("bootstrap", "KvxferKVBootstrapServer"),
}


def register() -> None:
    """The entry point. Calling it again does nothing. Raises ImportError and AttributeError where
    the installed SGLang has not what it needs."""
    from sglang.srt.arg_groups import choices

    if NAME in choices.DISAGG_TRANSFER_BACKEND_CHOICES:
        return
    choices.add_disagg_transfer_backend_choices([NAME])
    _hook_backend()
    if "sglang.srt.managers.scheduler" in sys.modules:  # others make no pools
        _hook_scheduler()


def _hook_backend() -> None:
    from sglang.srt.disaggregation.utils import TransferBackend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    members = {member.name: member.value for member in TransferBackend}
    backend = enum.Enum("TransferBackend", {**members, NAME.upper(): NAME},  # type: ignore[misc]
                        module=TransferBackend.__module__)
    utils = "sglang.srt.disaggregation.utils"
    HookRegistry.register(f"{utils}.TransferBackend", backend, HookType.REPLACE)
    HookRegistry.register(f"{utils}.get_kv_class", _get_kv_class, HookType.AROUND)


def _get_kv_class(original: Any, transfer_backend: Any, class_type: Any) -> Any:
    if transfer_backend.value != NAME or class_type.value not in _CLASSES:
        return original(transfer_backend, class_type)
    import importlib

    module, name = _CLASSES[class_type.value]
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


# ---- the scheduler's processes


def _hook_scheduler() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    disaggregation = "sglang.srt.disaggregation"
    for target, hook in (
            ("sglang.srt.model_executor.model_runner.ModelRunner.alloc_memory_pool", _make_pools),
            (f"{disaggregation}.utils.MetadataBuffers.__init__", _make_metadata),
            (f"{disaggregation}.prefill.PrefillBootstrapQueue._init_kv_manager", _make_manager),
            (f"{disaggregation}.decode.DecodePreallocQueue._init_kv_manager", _make_manager)):
        HookRegistry.register(target, hook, HookType.AROUND)


def _chosen() -> bool:
    from sglang.srt.runtime_context import get_disagg

    disagg = get_disagg()
    return bool(disagg.disaggregation_mode != "null"
                and disagg.disaggregation_transfer_backend == NAME)


def _make_pools(original: Any, *args: Any, **kwargs: Any) -> Any:
    if not _chosen():
        return original(*args, **kwargs)
    from .memory import allocations

    with allocations():
        return original(*args, **kwargs)


def _make_metadata(original: Any, *args: Any, **kwargs: Any) -> Any:
    if not _chosen():
        return original(*args, **kwargs)
    from .memory import allocations

    with allocations(indexes=True):
        return original(*args, **kwargs)


def _make_manager(original: Any, queue: Any) -> Any:
    if queue.transfer_backend.value != NAME:
        return original(queue)
    from .facts import facts_of, known

    heads = queue.scheduler.model_config.get_total_num_kv_heads()
    with known(facts_of(queue.token_to_kv_pool, queue.draft_token_to_kv_pool, heads)):
        manager = original(queue)
    manager.serves(queue.scheduler)
    _hold_pages(getattr(queue, "transfer_queue", None))
    return manager


def _hold_pages(transfer_queue: Any) -> None:
    """Decode: pages of a failed request are given back when nothing lands in them any more, and not
    after a time, however the environment is set."""
    if transfer_queue is not None:
        settings: Dict[str, Any] = {"enable_deferred_kv_release": True,
                                    "deferred_kv_release_timeout": float("inf")}
        for name, value in settings.items():
            if not hasattr(transfer_queue, name):
                raise AttributeError(f"this SGLang's DecodeTransferQueue has no {name}: kvxfer "
                                     "does not know how to hold the pages of failed requests")
            setattr(transfer_queue, name, value)
