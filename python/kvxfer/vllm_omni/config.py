"""The connector's configuration: the ``extra:`` mapping of a connector in a deploy YAML.

The keys of MoriTransferEngineConnector are taken as they are. Those that a daemon makes pointless
(NIC, queue pairs, worker threads, streams) are ignored, and named in one log line.
"""

import os
import socket as _socket
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

__all__ = ["Config", "IGNORED", "is_here", "join_host", "split_host"]

#: Keys of other connectors that mean nothing here: the daemon decides them for the whole node.
IGNORED = ("backend_type", "device_name", "protocol", "qp_per_transfer", "post_batch_size",
           "num_worker_threads", "xgmi_num_streams", "xgmi_num_events")
_AUTO = ("", "auto", "*", "0.0.0.0", "::")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_ROLES = ("sender", "receiver", "auto")


class Config(NamedTuple):
    """Checked values; see docs/engines/vllm-omni.md for what each key means."""

    role: str
    host: str  #: "" : the daemon knows
    number: Optional[int]  #: this process's endpoint number ("zmq_port"); nothing listens on it
    put_number: Optional[int]  #: the same for a stage in the middle, whose zmq_port is upstream's
    sender_host: Optional[str]
    sender_number: Optional[int]
    pool_bytes: int
    pool_device: str
    hugepages: bool
    ttl: float  #: seconds that something may wait for its getter, not counting time it is pinned
    lease: float  #: seconds after which a get that nobody asks for again is given up
    put_wait: float  #: seconds that put waits for room in the pool
    query_wait: float  #: seconds that a get without data_size waits for the owner's answer
    require: Optional[str]
    socket: Optional[str]
    stage_id: int
    from_stage: Optional[int]
    to_stage: Optional[int]

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> "Config":
        """Raises ValueError, with the key and what it should be."""
        role = str(extra.get("role", "sender")).lower()
        if role not in _ROLES:
            raise ValueError(f"role {role!r}: must be one of {', '.join(_ROLES)}")
        host = str(_expand(extra.get("host", "auto")) or "")
        sender_host = _expand(extra.get("sender_host"))
        return cls(
            role=role,
            host="" if host.lower() in _AUTO + _LOOPBACK else host,
            number=_int(extra, "zmq_port", None if role == "receiver" else 50051, 1),
            put_number=_int(extra, "put_zmq_port", None, 1),
            sender_host=None if sender_host is None else str(sender_host),
            sender_number=_int(extra, "sender_zmq_port", None, 1),
            pool_bytes=_int(extra, "memory_pool_size", 1 << 30, 4096) or 0,
            pool_device=str(extra.get("memory_pool_device", "cpu")).lower(),
            hugepages=bool(extra.get("kvxfer_hugepages", False)),
            ttl=_seconds(extra, "buffer_ttl_seconds", 300.0),
            lease=_seconds(extra, "kvxfer_lease_seconds", 60.0),
            put_wait=_seconds(extra, "kvxfer_put_wait_seconds", 2.0),
            query_wait=_seconds(extra, "kvxfer_query_wait_seconds", 1.0),
            require=extra.get("kvxfer_require") or None,
            socket=_expand(extra.get("kvxfer_socket")) or None,
            stage_id=_int(extra, "stage_id", -1, -1) or 0,
            from_stage=_stage(extra.get("from_stage")),
            to_stage=_stage(extra.get("to_stage")),
        )

    @staticmethod
    def ignored(extra: Mapping[str, Any]) -> List[str]:
        """Keys that were given and mean nothing here, as ``key=value``."""
        return [f"{key}={extra[key]!r}" for key in IGNORED if extra.get(key) not in (None, "")]

    def number_for_put(self) -> Optional[int]:
        """The number under which this process is asked for what it puts.

        A stage in the middle of a pipeline is created as the receiver of its incoming edge; the
        package announces its outgoing edge as the next number (stage ids are the last digits of
        all numbers), with the base number of the edge's connector, which both edges share in a
        deploy YAML as a rule. ``put_zmq_port`` says otherwise.
        """
        if self.put_number is not None:
            return self.put_number
        if self.role != "receiver":
            return self.number
        if self.sender_number is None or self.from_stage is None or self.stage_id < 0:
            return None
        return self.sender_number + self.stage_id - self.from_stage


def _expand(value: Any) -> Any:
    return os.path.expandvars(value) if isinstance(value, str) else value


def _stage(value: Any) -> Optional[int]:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _int(extra: Mapping[str, Any], key: str, default: Optional[int], least: int) -> Optional[int]:
    value = _expand(extra.get(key))
    if value is None or value == "":
        return default
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} {value!r}: must be a whole number") from None
    if number < least:
        raise ValueError(f"{key} {number}: must be at least {least}")
    return number


def _seconds(extra: Mapping[str, Any], key: str, default: float) -> float:
    value = extra.get(key, default)
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key} {value!r}: must be a number of seconds") from None
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{key} {seconds}: must be 0 or more seconds")
    return seconds


def split_host(host: str) -> Tuple[str, Optional[int]]:
    """("10.0.0.1", 7717) of "10.0.0.1:7717"; the port None where none is named. "[::1]:7717" is
    IPv6 with a port, "::1" without."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return name, int(port[1:]) if port[1:].isdigit() else None
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and ":" not in name:
        return name, int(port)
    return host, None


def join_host(host: str, port: Optional[int]) -> str:
    """"host:port"; brackets around IPv6."""
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_here: Dict[str, bool] = {}


def is_here(host: str) -> bool:
    """Whether a host name or address without a port is this machine's: a socket can be bound to
    it. Asks the resolver the first time."""
    if host.lower() in _AUTO + _LOOPBACK:
        return True
    if host not in _here:
        _here[host] = _can_bind(host)
    return _here[host]


def _can_bind(host: str) -> bool:
    try:
        found = _socket.getaddrinfo(host, 0, type=_socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, proto, _, address in found:
        try:
            with _socket.socket(family, kind, proto) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False
