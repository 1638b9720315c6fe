"""The keys of ``kv_connector_extra_config``: MoRIIOConnector's and our own. Pure; no vLLM."""

import logging
import math
import os
import zlib
from typing import Any, FrozenSet, Mapping, NamedTuple, Optional, Tuple

__all__ = ["Config", "read"]

logger = logging.getLogger("vllm.kvxfer")

#: Keys of MoRIIOConnector that a daemon makes pointless.
IGNORED = ("handshake_port", "backend", "qp_per_transfer", "post_batch_size", "num_workers")
KNOWN = frozenset(IGNORED + (
    "proxy_ip", "proxy_ping_port", "http_port", "host_ip", "read_mode", "notify_port",
    "transfer_timeout", "defer_timeout", "recv_abort_timeout",
    "socket", "peer_address", "allowed_peers", "check_backend", "stream_layers"))
_OLD_READ_MODE = "VLLM_MORIIO_CONNECTOR_READ_MODE"


class Config(NamedTuple):
    """What an operator said. Times in seconds."""

    #: Decode reads from prefill (True), or prefill writes to decode (False).
    read_mode: bool = False
    #: Prefill: how long what it offers waits for the decode side, from the end of the prefill.
    defer_timeout: float = 60.0
    #: Either side: how long a transfer may take once both sides are there.
    transfer_timeout: float = 30.0
    #: Decode: how long a request waits for its KV, queueing at the prefill side included.
    recv_abort_timeout: float = 120.0
    #: Of the proxy that we register with; "": none.
    proxy_ip: str = ""
    proxy_ping_port: int = 0
    #: Of this engine's OpenAI server, as the proxy reaches it.
    http_port: int = 0
    #: This node's IP as peers and the proxy reach it; "": found out.
    host_ip: str = ""
    #: Number that tells this engine from others on its node.
    number: int = 0
    #: Unix socket of the node's kvxferd. None: the default one.
    socket: Optional[str] = None
    #: "host:port" of this node's daemon as peers reach it; "": as the daemon says.
    peer_address: str = ""
    #: Hosts (or host:port) of daemons that requests may name; empty: any that our daemon talks to.
    allowed_peers: FrozenSet[str] = frozenset()
    #: Refuse peers with another attention backend, whose blocks may be filled differently.
    check_backend: bool = True
    #: WRITE: send after every so many layers, while the others are computed. 0: all at the end of
    #: each step; -1: a sixteenth of them at a time.
    stream_layers: int = -1


def read(extra: Mapping[str, Any], engine_id: str = "", *, quiet: bool = False) -> Config:
    """Reads ``kv_connector_extra_config``; numbers may be strings. Says in one line which keys are
    ignored, unless ``quiet``. Raises ValueError with the key's name."""
    if not quiet:
        _tell(extra)
    defaults = Config()
    number = _number(extra, "notify_port") or _number(extra, "http_port")
    return Config(
        read_mode=_flag(extra, "read_mode", False),
        defer_timeout=_seconds(extra, "defer_timeout", defaults.defer_timeout),
        transfer_timeout=_seconds(extra, "transfer_timeout", defaults.transfer_timeout),
        recv_abort_timeout=_seconds(extra, "recv_abort_timeout", defaults.recv_abort_timeout),
        proxy_ip=str(extra.get("proxy_ip") or ""),
        proxy_ping_port=_number(extra, "proxy_ping_port"),
        http_port=_number(extra, "http_port"),
        host_ip=str(extra.get("host_ip") or ""),
        number=number or _from_engine_id(engine_id),
        socket=str(extra["socket"]) if extra.get("socket") else None,
        peer_address=str(extra.get("peer_address") or ""),
        allowed_peers=frozenset(_words(extra, "allowed_peers")),
        check_backend=_flag(extra, "check_backend", True),
        stream_layers=_layers(extra))


def _tell(extra: Mapping[str, Any]) -> None:
    ignored = [key for key in IGNORED if key in extra]
    if ignored:
        logger.info("kvxfer: ignored, the node's daemon does this: %s", ", ".join(ignored))
    unknown = sorted(set(extra) - KNOWN)
    if unknown:
        logger.warning("kvxfer: unknown keys in kv_connector_extra_config: %s", ", ".join(unknown))
    if _OLD_READ_MODE in os.environ and "read_mode" not in extra:
        logger.warning("kvxfer: %s is not read; set \"read_mode\": true in "
                       "kv_connector_extra_config", _OLD_READ_MODE)


def _from_engine_id(engine_id: str) -> int:
    """A number that all processes of the engine find, where no port is configured."""
    return 1 + zlib.crc32(engine_id.partition("_dp")[0].encode()) % 65535


def _flag(extra: Mapping[str, Any], key: str, default: bool) -> bool:
    text = str(extra.get(key, default)).strip().lower()
    if text not in ("true", "1", "false", "0"):
        raise ValueError(f"kv_connector_extra_config.{key}: {extra[key]!r}, must be true or false")
    return text in ("true", "1")


def _layers(extra: Mapping[str, Any]) -> int:
    """A number, or true or false."""
    value = extra.get("stream_layers", True)
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return value
    if str(value).strip().isdigit():
        return int(value)
    return -1 if _flag(extra, "stream_layers", True) else 0


def _number(extra: Mapping[str, Any], key: str) -> int:
    value = extra.get(key)
    if value is None or value == "":
        return 0
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number <= 65535:
        raise ValueError(f"kv_connector_extra_config.{key}: {value!r}, must be 0 to 65535")
    return number


def _seconds(extra: Mapping[str, Any], key: str, default: float) -> float:
    try:
        seconds = float(extra.get(key, default))
    except (TypeError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"kv_connector_extra_config.{key}: {extra[key]!r}, must be seconds > 0")
    return seconds


def _words(extra: Mapping[str, Any], key: str) -> Tuple[str, ...]:
    value = extra.get(key) or ()
    words = value.split(",") if isinstance(value, str) else list(value)
    return tuple(str(word).strip() for word in words if str(word).strip())
