"""What the scheduler side of the connector tells its workers at each step. Pickled by vLLM."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata, KVConnectorMetadata)

from ..pd import Endpoint

__all__ = ["Handshake", "Hold", "Receive", "Send", "StepMeta"]

#: transfer group -> (first logical block, block ids)
Blocks = Dict[int, Tuple[int, List[int]]]


@dataclass
class Send:
    """WRITE, prefill: blocks that this step completes. With ``last`` there are no more."""

    request: str
    transfer: str
    blocks: Blocks
    last: bool


@dataclass
class Hold:
    """READ, prefill: a request is done, its blocks wait for the decode side."""

    request: str
    transfer: str
    blocks: Blocks


@dataclass
class Receive:
    """Decode: blocks that the prefill engine fills. ``request`` "": nobody waits for it, it only
    tells the prefill side that nothing is needed."""

    request: str
    transfer: str
    label: str
    source: Endpoint
    blocks: Blocks


@dataclass
class StepMeta(KVConnectorMetadata):
    """One step."""

    sends: List[Send] = field(default_factory=list)
    holds: List[Hold] = field(default_factory=list)
    receives: List[Receive] = field(default_factory=list)
    #: request id -> why: requests whose Send or Hold ends early.
    cancels: Dict[str, str] = field(default_factory=dict)
    #: transfer id -> why: requests that ended before any Send of theirs.
    refusals: Dict[str, str] = field(default_factory=dict)
    #: Requests that lose their blocks at the beginning of this step.
    preempted: List[str] = field(default_factory=list)


@dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """What a worker tells the scheduler side of its own engine at the start."""

    host: str
    port: int  #: of the node's daemon for peers; 0: it listens to none


def describe(params: Optional[Dict[str, Any]]) -> str:
    """kv_transfer_params for a log line: without block ids."""
    if not params:
        return "none"
    return ", ".join(f"{key}={value}" for key, value in params.items()
                     if key != "remote_block_ids")
