"""The worker side: one rank's KV cache, registered with the node's daemon, and what the scheduler
side asks for at each step.

In every worker process, on the thread of the model runner. Nothing here blocks but register(),
preempted() and close(): kvxfer.pd does the work on a thread of its own.
"""

import logging
from typing import TYPE_CHECKING, Dict, Mapping, NamedTuple, Optional, Set

import torch

from .. import pd
from ..client import Client
from . import geometry, ids
from .config import Config
from .memory import SharedAllocation, memories_of
from .meta import Handshake, StepMeta
from .proxy_ping import ProxyPing, registration
from .receiving import Receiver
from .sending import Sender
from .stats import KvxferStats

if TYPE_CHECKING:
    from vllm.v1.kv_cache_interface import KVCacheConfig

__all__ = ["Place", "Results", "Worker"]

logger = logging.getLogger("vllm.kvxfer")

_SETUP_S = 60.0


class Place(NamedTuple):
    """Which rank of which engine this is."""

    tp: int = 0
    tp_size: int = 1
    pp: int = 0
    pp_size: int = 1
    dp: int = 0
    dp_size: int = 1
    host: str = "127.0.0.1"
    producer: bool = False
    #: Tells the proxy about the engine: one rank of it.
    registers: bool = False


class Results(NamedTuple):
    """What has ended: request ids."""

    sent: Set[str]
    received: Set[str]
    failed: Set[str]  #: also in ``received``


class _Serving(NamedTuple):
    """What there is once the KV cache is registered."""

    rank: pd.Rank
    sender: Sender
    receiver: Receiver


class Worker:
    """One per worker process."""

    def __init__(self, config: Config, place: Place, kv_cache_config: "KVCacheConfig",
                 shards: geometry.Shards, check: Mapping[str, str]) -> None:
        self._config = config
        self._place = place
        self._kv_cache_config = kv_cache_config
        self._shards = shards
        self._check = check
        self._allocation: Optional[SharedAllocation] = None
        self._serving: Optional[_Serving] = None
        self._ping: Optional[ProxyPing] = None
        self._address = Handshake(place.host, 0)
        self._paths: Dict[str, str] = {}
        self.stats = KvxferStats()

    # ---- set-up

    def allocation(self) -> SharedAllocation:
        """The context to allocate a CPU KV cache in."""
        self._allocation = SharedAllocation()
        return self._allocation

    def register(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Publishes the KV cache at the node's daemon. Blocks. Raises KvxferError."""
        kv_config, config, place = self._kv_cache_config, self._config, self._place
        used = {name: tensor for group in kv_config.transfer_groups
                for name, tensor in kv_caches.items() if name in group.layer_names}
        memories = memories_of(used, self._allocation.memories if self._allocation else [])
        layout = geometry.describe(kv_config, used, self._shards)
        planes = {key: (memories[layout.groups[key[0]].layers[key[1]]], tensor)
                  for key, tensor in layout.planes.items()}
        self._address = _address(config, place.host)
        rank = pd.Rank(ids.engine_name(self._address.host, config.number), dp=place.dp,
                       tp=place.tp, tp_size=place.tp_size, pp=place.pp, pp_size=place.pp_size,
                       socket=config.socket, check=self._check, timeout=_SETUP_S)
        try:
            rank.serve(pd.Pool.of(layout.groups, planes))
        except BaseException:
            rank.close()
            raise
        device = next(iter(used.values())).device.type
        self._serving = _Serving(rank, Sender(rank, layout, config, device), Receiver(
            rank, layout, config, len(kv_config.kv_cache_groups) == 1))
        logger.info("kvxfer: %s: %d groups, %d planes, daemon %s:%d", rank.name,
                    len(layout.groups), len(planes), self._address.host, self._address.port)
        if place.registers and config.proxy_ip:
            self._ping = _start_ping(config, place, self._address)

    def handshake(self) -> Handshake:
        """Where peers reach this node's daemon."""
        return self._address

    # ---- a step, in the order of the calls

    def preempted(self, meta: StepMeta) -> None:
        """Before the step's forward overwrites blocks: nothing reads those of preempted requests
        when this returns. Blocks for as long as bytes are under way."""
        if meta.preempted:
            self._ours.sender.preempted(meta.preempted)

    def save_layer(self, meta: StepMeta, layer: str) -> None:
        """The layer's KV of this step is computed (as soon as the stream has come this far)."""
        if meta.sends:
            self._ours.sender.layer(meta, layer)

    def begin(self, meta: StepMeta) -> None:
        """Starts what the decode side wants, holds what it will read, ends what is not needed."""
        sender, receiver = self._ours.sender, self._ours.receiver
        for entry in meta.receives:
            receiver.receive(entry)
        for hold in meta.holds:
            sender.hold(hold)
        for request, why in meta.cancels.items():
            sender.cancel(request, why)
        for transfer, why in meta.refusals.items():
            sender.refuse(transfer, why)

    def save_rest(self, meta: StepMeta) -> None:
        """All layers are computed: those that save_layer() has not seen, too."""
        if meta.sends:
            self._ours.sender.rest(meta)

    def finished(self, finished_requests: Set[str]) -> Optional[Results]:
        """What has ended since the last call; None: nothing. ``finished_requests``: those that the
        scheduler has done with; only they are told as sent. Never blocks."""
        rank, sender, receiver = self._ours
        for request in finished_requests:
            sender.done(request)
            receiver.done(request)
        outcomes = rank.finished()
        for outcome in outcomes:
            half = sender if outcome.role in ("offer", "hold") else receiver
            self._tell(outcome, half.ended(outcome))
        if outcomes:
            self._tell_paths()
        results = Results(sender.take_sent(), *receiver.take())
        return results if results.sent or results.received else None

    def invalid_blocks(self) -> Set[int]:
        """Blocks of vLLM's tables that have no valid KV, since the last call."""
        return self._ours.receiver.take_lost_blocks()

    # ---- inspection, end

    def paths(self) -> Dict[str, str]:
        """Peer rank -> transport that the last bytes to or from it took."""
        return self._ours.rank.paths()

    def counters(self) -> Dict[str, float]:
        """Since the start; see pd.Rank.stats()."""
        return dict(self._ours.rank.stats())

    def close(self) -> None:
        """Ends everything; blocks until nothing uses the KV cache any more."""
        if self._ping is not None:
            self._ping.close()
            self._ping = None
        if self._serving is not None:
            self._serving.rank.close()

    @property
    def _ours(self) -> _Serving:
        assert self._serving is not None, "before register_kv_caches()"
        return self._serving

    def _tell(self, outcome: pd.Outcome, request: Optional[str]) -> None:
        self.stats.record(outcome)
        if outcome.error is not None and request is not None:
            logger.warning("kvxfer: request %s: %s failed: %s", request, outcome.role,
                           outcome.error)

    def _tell_paths(self) -> None:
        for peer, transport in self._ours.rank.paths().items():
            if self._paths.get(peer) != transport:
                self._paths[peer] = transport
                logger.info("kvxfer: KV cache to and from %s goes by %s", peer, transport)


def _start_ping(config: Config, place: Place, address: Handshake) -> ProxyPing:
    host = f"[{config.proxy_ip}]" if ":" in config.proxy_ip else config.proxy_ip
    server = f"[{place.host}]" if ":" in place.host else place.host
    return ProxyPing(f"{host}:{config.proxy_ping_port}", registration(
        producer=place.producer, http_address=f"{server}:{config.http_port}",
        zmq_address=ids.format_zmq(ids.Peer(address.host, address.port, config.number)),
        dp_size=place.dp_size, tp_size=place.tp_size, read_mode=config.read_mode))


def _address(config: Config, host: str) -> Handshake:
    """The daemon's address for peers: as configured, else as it says; the host where it is one that
    others can use, else this node's. Blocks for the daemon's answer."""
    address = config.peer_address
    if not address:
        with Client(config.socket, name="kvxfer-vllm", timeout=_SETUP_S) as client:
            address = client.address
    told, _, port = address.rpartition(":")
    told = told.strip("[]")
    if not port.isdigit():
        return Handshake(host, 0)
    return Handshake(host if told in ("", "0.0.0.0", "::", "*") else told, int(port))
