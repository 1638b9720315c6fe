"""Names that travel between proxies and engines: ZMQ addresses, request ids, kv_transfer_params.

Pure functions; no vLLM, no daemon. The formats are those of vLLM's MoRIIOConnector, so that
vllm-router, the reference proxy and llm-d's sidecar work unchanged. No port of an engine is behind
them here: of "host:IP,handshake:PORT,notify:PORT" kvxfer takes IP:handshake as the address of that
node's daemon, and IP:notify as the name of the engine.
"""

import hashlib
import re
from typing import Any, Mapping, NamedTuple, Optional, Sequence

from ..pd import Endpoint

__all__ = ["Peer", "engine_name", "format_zmq", "label", "parse_zmq", "peer_of_params",
           "peer_of_request", "source_endpoint", "transfer_base", "transfer_id"]

LABEL_MAX = 64
ID_MAX = 120  #: bytes of a transfer id here; the sub-request is added to it

_PREFILL = re.compile(r"___prefill_addr_(.+?)___decode_addr_")
_DECODE = re.compile(r"___decode_addr_(.+)_([0-9a-f]{32})((?:-.*)?)$")
_ADDRESSES = re.compile(r"___prefill_addr_.*___decode_addr_.*_(?=[0-9a-f]{32})")
_RANDOM = re.compile(r"-[0-9a-f]{8}$")
_CHILD = re.compile(r"^(\d+)_(?=(?:chat)?cmpl-)")
_COMPLETION = re.compile(r"^(?:\d+_)?cmpl-.*-(\d+)-[0-9a-f]{8}$")
_WRAPPED = re.compile(r"^(?:\d+_)?(?:chat)?cmpl-(.+?)(?:-\d+)?-[0-9a-f]{8}$")


class Peer(NamedTuple):
    """An engine as proxies name it."""

    host: str
    handshake: int  #: port of its node's daemon for peers; 0: reachable on its own node only
    notify: int  #: number of the engine on its node


def parse_zmq(address: str) -> Peer:
    """``"host:IP,handshake:PORT,notify:PORT"``; IP may be an IPv6 address. Raises ValueError."""
    words = dict((key.strip(), value.strip()) for key, _, value in
                 (word.partition(":") for word in address.split(",")))
    try:
        peer = Peer(words["host"], int(words["handshake"]), int(words["notify"]))
    except (KeyError, ValueError):
        raise ValueError(f"zmq address {address!r}: must be "
                         "'host:IP,handshake:PORT,notify:PORT'") from None
    if not peer.host:
        raise ValueError(f"zmq address {address!r}: the host is empty")
    return peer


def format_zmq(peer: Peer) -> str:
    """The inverse of parse_zmq()."""
    return f"host:{peer.host},handshake:{peer.handshake},notify:{peer.notify}"


def engine_name(host: str, notify: int) -> str:
    """The name under which an engine's ranks are published at their daemon."""
    return f"{host}:{notify}"


def peer_of_request(request_id: str, producer: bool) -> Optional[Peer]:
    """The peer that a router wrote into the request id: the decode engine where ``producer``, else
    the prefill engine. None: the id has no addresses. Raises ValueError: malformed ones."""
    found = (_DECODE if producer else _PREFILL).search(request_id)
    return parse_zmq(found.group(1)) if found else None


def peer_of_params(params: Mapping[str, Any]) -> Optional[Peer]:
    """The peer that kv_transfer_params name: by remote_host, remote_handshake_port and
    remote_notify_port, or as our own answers do, by remote_engine_id. None: they do not. Raises
    ValueError."""
    if not params.get("remote_host"):
        try:
            return parse_zmq(str(params.get("remote_engine_id")))
        except ValueError:
            return None
    try:
        return Peer(str(params["remote_host"]), int(params["remote_handshake_port"]),
                    int(params["remote_notify_port"]))
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            "kv_transfer_params with remote_host need remote_handshake_port and "
            f"remote_notify_port, too, as numbers; they are {dict(params)!r}") from None


def source_endpoint(request_id: str, params: Mapping[str, Any]) -> Endpoint:
    """Where the prefill of a decode request runs: as its id says, else as its params say.
    Raises ValueError when neither does, with what to do."""
    try:
        return _endpoint(request_id, params)
    except (TypeError, OverflowError, IndexError) as err:  # the params are a client's
        raise ValueError(f"kv_transfer_params of {request_id!r} cannot be read: {err}") from None


def _endpoint(request_id: str, params: Mapping[str, Any]) -> Endpoint:
    peer = peer_of_request(request_id, producer=False) or peer_of_params(params)
    if peer is None:
        raise ValueError(
            f"request {request_id!r} does not say where its prefill runs: neither has its id the "
            "form ___prefill_addr_...___decode_addr_..._<32 hex digits> (vllm-router), nor do its "
            "kv_transfer_params have remote_host, remote_handshake_port and remote_notify_port")
    dp = int(params.get("remote_dp_rank") or 0)
    if dp < 0:
        raise ValueError(f"kv_transfer_params of {request_id!r}: remote_dp_rank {dp}")
    host = _host_of_dp(peer.host, params, dp)
    tp_size = params.get("remote_tp_size") or params.get("tp_size")
    address = f"[{host}]:{peer.handshake}" if ":" in host else f"{host}:{peer.handshake}"
    return Endpoint(address if peer.handshake else "", engine_name(host, peer.notify), dp,
                    int(tp_size) if tp_size else None)


def _host_of_dp(host: str, params: Mapping[str, Any], dp: int) -> str:
    """With the data-parallel ranks on several nodes, the one of rank ``dp``."""
    hosts = params.get("remote_hosts")
    local = int(params.get("remote_dp_size_local") or 0)
    if not isinstance(hosts, Sequence) or isinstance(hosts, str) or not local:
        return host
    node = dp // local
    return str(hosts[node]) if node < len(hosts) else host


def transfer_base(request_id: str, params: Mapping[str, Any]) -> str:
    """The id of a proxy's request: ``transfer_id`` of the params; else what the router or client
    put into the request id, which vLLM wraps as "cmpl-<id>-<prompt>-<8 hex>" with 8 digits that
    differ per engine."""
    base = params.get("transfer_id") or params.get("remote_request_id")
    if not base:
        routed = _DECODE.search(request_id)
        wrapped = _WRAPPED.match(request_id)
        base = routed.group(2) if routed else wrapped.group(1) if wrapped else request_id
    return str(base)


def transfer_id(request_id: str, params: Mapping[str, Any]) -> str:
    """The id that both engines use for a request's transfer: that of the proxy's request, and,
    where this has several prompts or samples, which one it is."""
    base = transfer_base(request_id, params)
    if len(base.encode()) > ID_MAX:
        base = hashlib.sha256(base.encode()).hexdigest()
    return base + _sub_request(request_id)


def _sub_request(request_id: str) -> str:
    child = _CHILD.match(request_id)
    sample = int(child.group(1)) if child else 0
    routed = _DECODE.search(request_id)
    if routed:
        rest = _RANDOM.sub("", routed.group(3))
        number = rest[1:] if rest not in ("", "-0") else ""
    else:
        found = _COMPLETION.match(request_id)
        number = found.group(1) if found and int(found.group(1)) else ""
    return f"#{number or 0}.{sample}" if number or sample else ""


def label(request_id: str) -> str:
    """The request id as a transfer's label: without the addresses, at most 64 printable bytes."""
    short = _ADDRESSES.sub("", request_id)
    text = "".join(c if "!" <= c <= "~" else "_" for c in short)
    return text[-LABEL_MAX:]
