"""The kvxfer connector for vLLM: KV cache from prefill to decode engines, through kvxferd.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "KvxferConnector",
        "kv_connector_module_path": "kvxfer.vllm", "kv_role": "kv_producer",
        "kv_connector_extra_config": {"proxy_ip": "10.0.0.1", "proxy_ping_port": 36367,
                                      "http_port": 8100}}'

vLLM is imported when ``KvxferConnector`` is first asked for; the other modules of this package, but
``connector``, ``worker``, ``scheduler`` and ``stats``, need neither vLLM nor torch. Made for vLLM
0.32 and 0.33.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .connector import KvxferConnector

__all__ = ["KvxferConnector"]


def __getattr__(name: str) -> Any:
    if name == "KvxferConnector":
        from .connector import KvxferConnector

        return KvxferConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
