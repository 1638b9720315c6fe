"""The KVManager of one rank: its pool at the daemon, its rooms, and what SGLang asks about them.

SGLang's CommonKVManager brings the bootstrap server's client side, the heartbeat and the mapping of
ranks; its ZMQ channel carries nothing here but the control messages of deferred allocation. All
data and what belongs to it goes through :class:`kvxfer.pd.Rank`.

Called by the scheduler's thread, by SGLang's heartbeat thread, and by threads of this module
(pipeline parallel prefill: claims; deferred allocation: messages). Nothing blocks but the
constructor, ``deregister_buffer_to_engine``, ``register_buffer_to_engine`` and ``teardown``.
"""

import json
import logging
import threading
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from sglang.srt.disaggregation.base.conn import KVArgs, KVPoll
from sglang.srt.disaggregation.common.conn import CommonKVManager
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.environ import envs
from sglang.srt.runtime_context import get_device, get_serving
from sglang.srt.utils.network import NetworkAddress

from .. import errors
from ..pd import Endpoint, Offer, Rank
from ..wait import EventPool
from .facts import facts_now
from .geometry import Layout, Place, describe
from .rooms import Rooms
from .settings import settings

__all__ = ["KvxferKVManager"]

logger = logging.getLogger(__name__)

_OFFER_S = 24 * 3600.0  # an offer waits for the scheduler as long as SGLang lets it
_CLAIM_EVERY_S = 0.005
_SETTLE_EVERY_S = 0.0005
_WILDCARDS = ("", "0.0.0.0", "::", "[::]")


class KvxferKVManager(CommonKVManager):
    """What SGLang makes of ``--disaggregation-transfer-backend kvxfer`` on every rank.

    Raises KvxferError where the daemon, the buffers or the engine's options do not allow it; the
    text says what to do.
    """

    supports_role_switch = True
    supports_deferred_decode_kv_release = True
    kv_status_msg_tag = b"kvxfer"
    kv_status_msg_carries_reason = True
    reports_transfer_latency = True

    def __init__(self, args: KVArgs, disaggregation_mode: DisaggregationMode, server_args: Any,
                 is_mla_backend: Optional[bool] = False) -> None:
        self._settings = settings()
        self._facts = facts_now()
        #: SGLang's scheduler, set by the plugin. None: driven by something else.
        self._scheduler: Any = None
        self._lock = threading.RLock()
        self._rooms = Rooms()
        self._rank: Optional[Rank] = None
        self._stopping = threading.Event()
        self._threads: List[threading.Thread] = []
        #: Events that the daemon can wait for, and the stream that they are recorded on.
        self._events = EventPool.of_torch(str(get_device().device))
        self._after: Any = None
        super().__init__(args, disaggregation_mode, server_args, is_mla_backend)
        # Pages that another TP rank's failure gives back are held until nothing lands in them:
        # always.
        self.enable_deferred_decode_kv_release = True
        if disaggregation_mode == DisaggregationMode.PREFILL:
            if self.pp_size > 1:
                self._start(self._watch, "kvxfer-claims")
        else:
            self._serve()
            self._start_heartbeat_checker_thread()
        if self.defer_decode_allocation:
            self._start(self._listen, "kvxfer-control")

    # ---- start and end

    def _serve(self) -> None:
        """Publishes the rank's buffers. Blocks."""
        self._check_options()
        prefill = self.disaggregation_mode == DisaggregationMode.PREFILL
        where = Place(self.attn_tp_rank, self.attn_tp_size, self.pp_rank, self.pp_size)
        self._latent = bool(self.is_mla_backend or self.is_hybrid_mla_backend)
        self._layout: Layout = describe(self.kv_args, self._facts, where, latent=self._latent,
                                        aux=not prefill or self.pp_rank == self.pp_size - 1,
                                        gpu=get_device().device != "cpu")
        rank = Rank(self._engine_name(), dp=self._dp(), tp=where.tp, tp_size=where.tp_size,
                    pp=where.pp, pp_size=where.pp_size, socket=self._settings.socket,
                    check={"kv_cache_dtype": str(self.kv_cache_dtype_str),
                           "kv_layout": str(self.kv_layout),
                           "page_size": str(self.kv_args.page_size)},
                    info={"sglang": self.disaggregation_mode.value},
                    patience=self._settings.patience)
        try:
            rank.serve(self._layout.pool())
        except BaseException:
            rank.close()
            raise
        self._rank = rank
        logger.info("kvxfer: %s published, %d groups, daemon for peers at %s", rank.name,
                    len(self._layout.groups), self._address() or "no address (same node only)")

    def _check_options(self) -> None:
        said = []
        if self.dcp_size > 1:
            said.append("--dcp-size > 1")
        if self.kv_shard_size > 1:
            said.append("--enable-kv-cache-sharding")
        if self.attn_cp_size > 1 and self.enable_all_cp_ranks_for_transfer:
            said.append("context parallel prefill in which every CP rank sends "
                        "(SGLANG_DISAGGREGATION_ALL_CP_RANKS_TRANSFER, "
                        "--enable-dsa-cache-layer-split, hybrid MLA)")
        if self.state_tp_size != self.attn_tp_size:
            said.append("--enable-cp-tp-group-sharing")
        if envs.SGLANG_RUST_SERVER.get():
            said.append("SGLANG_RUST_SERVER (its registry has no place for kvxfer's addresses)")
        if said:
            raise errors.Unsupported("the transfer backend kvxfer cannot be used with "
                                     + ", ".join(said) + ": start the engine without")

    def _engine_name(self) -> str:
        """One for all ranks of the instance, and for no other of the nodes they are on."""
        host = self.local_ip
        if self.dist_init_addr:
            host = NetworkAddress.parse(self.dist_init_addr).resolved().host
        name = self._settings.engine or f"{host}:{get_serving().port}"
        return f"{name}/cp{self.attn_cp_rank}" if self.attn_cp_rank else name

    def _dp(self) -> int:
        return int(self.attn_dp_rank if self.system_dp_size == 1 else self.system_dp_rank)

    def _address(self) -> str:
        address = self.rank.address
        host, _, port = address.rpartition(":")
        return f"{self.local_ip}:{port}" if address and host in _WILDCARDS else address

    @property
    def rank(self) -> Rank:
        if self._rank is None:
            raise errors.Closed("the KV manager has been closed")
        return self._rank

    def serves(self, scheduler: Any) -> None:
        """The scheduler whose requests these are."""
        self._scheduler = scheduler

    @property
    def layout(self) -> Layout:
        return self._layout

    def register_to_bootstrap(self) -> None:
        self._serve()
        super().register_to_bootstrap()

    def _register_topology_row(self, url: str, payload: Dict[str, Any]) -> None:
        contact = {"engine": self.rank.name.split("/dp")[0], "address": self._address()}
        super()._register_topology_row(url, {**payload, "kvxfer": contact})

    def _start(self, what: Any, name: str) -> None:
        thread = threading.Thread(target=what, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def deregister_buffer_to_engine(self) -> None:
        """SGLang is about to give the pool's memory away: everything ends first. Blocks."""
        rank, self._rank = self._rank, None
        if rank is not None:
            rank.close()
            self._take(rank)

    def register_buffer_to_engine(self) -> None:
        """The pool's memory is there again. Blocks."""
        if self._rank is None:
            self._serve()

    def teardown(self) -> None:
        """Before a change of roles. Blocks."""
        self._stopping.set()
        if self.disaggregation_mode == DisaggregationMode.DECODE:
            self._heartbeat_shutdown.set()
        self.deregister_buffer_to_engine()
        for thread in self._threads:
            thread.join(2)
        self.server_socket.close(linger=0)
        self._zmq_ctx.destroy(linger=0)

    # ---- rooms

    def open_offer(self, room: int) -> None:
        """The prefill side of a room: from now on decode ranks can claim it."""
        with self._lock:
            self._rooms.add(room, self.rank.offer(str(room), deadline=_OFFER_S,
                                                  label=f"room {room}"))

    def open_expect(self, room: int, source: Endpoint, blocks: Mapping[int, Tuple[int, Any]],
                    prefix: int) -> None:
        """The decode side: asks for the blocks of a room."""
        with self._lock:
            self._rooms.add(room, self.rank.expect(
                str(room), source, blocks, deadline=float(self.waiting_timeout),
                label=f"room {room}", info=json.dumps({"prefix": prefix}).encode()))

    def decline(self, room: int, source: Endpoint, cause: str) -> None:
        """The decode side gives a room up for which it has not asked."""
        self.rank.decline(str(room), source, cause)

    def live(self, room: int) -> bool:
        """Whether pages of the room may still be read or written."""
        with self._lock:
            return self._rooms.live(room)

    def progress(self) -> None:
        """Takes what has ended. A microsecond when there is nothing."""
        rank = self._rank
        if rank is not None:
            self._take(rank)

    def _take(self, rank: Rank) -> None:
        for outcome in rank.finished():
            failure = None
            if not outcome.ok:
                failure = str(outcome.error)
                if isinstance(outcome.error, errors.Deadline) and outcome.role == "expect":
                    failure = (f"Request {outcome.id} timed out after {outcome.seconds:.1f}s in "
                               f"KVPoll.WaitingForInput ({failure})")
            with self._lock:
                self._end(int(outcome.id), failure, outcome.nbytes)

    def _end(self, room: int, failure: Optional[str], nbytes: int) -> None:
        ended = self._rooms.end(room, failure, nbytes)
        if ended is None:
            return
        if ended.cause is None:
            super().update_status(room, KVPoll.Success)
        elif room in self.request_status:
            self.record_failure(room, ended.cause)
            super().update_status(room, KVPoll.Failed)

    def claim(self, room: int) -> None:
        """Bootstrapping ends when every decode rank has said where its pages are."""
        with self._lock:
            state = self._rooms.get(room)
            if state is None or self.request_status.get(room) != KVPoll.Bootstrapping:
                return
            offer: Offer = state.transfers[-1]
            if not offer.claimed:
                return
            prefixes = {int(json.loads(info or b"{}").get("prefix", 0)) for info in offer.infos}
            if len(prefixes) > 1:
                self.fail(room, f"decode ranks hold different prefixes of the request: {prefixes}")
                return
            self.req_to_decode_prefix_len[room] = prefixes.pop() if prefixes else 0
            self.update_status(room, KVPoll.WaitingForInput)

    def fail(self, room: int, cause: str) -> None:
        """The room is to fail; it does when nothing of it is under way any more."""
        self.record_failure(room, cause)
        self.update_status(room, KVPoll.Failed)

    def update_status(self, bootstrap_room: int, status: int) -> None:
        """As SGLang's, but that Failed waits for the end of the room's transfers."""
        with self._lock:
            state = self._rooms.get(bootstrap_room)
            if status == KVPoll.Failed and state is not None and state.left:
                state.doom(self.failure_records.get(bootstrap_room, "given up by this engine"))
                return
            super().update_status(bootstrap_room, status)

    def record_failure(self, bootstrap_room: int, failure_reason: str) -> None:
        """The first cause is kept: later ones are its consequences."""
        with self.failure_lock:
            self.failure_records.setdefault(bootstrap_room, failure_reason)

    def take_failure(self, room: int) -> Optional[str]:
        with self.failure_lock:
            cause: Optional[str] = self.failure_records.pop(room, None)
        return cause

    def clear_room(self, room: int) -> None:
        """SGLang forgets the room."""
        with self._lock:
            self._rooms.clear(room, "the request was dropped by this engine")
        self.take_failure(room)

    def nbytes(self, room: int) -> int:
        """Moved for the room so far by transfers that have ended."""
        with self._lock:
            state = self._rooms.get(room)
            return state.nbytes if state is not None else 0

    def settle(self, room: int, cause: str) -> None:
        """Prefill, where SGLang gives the pages of a room back at once: fails the room and waits
        until its pages are not read any more, at most for KVXFER_SGLANG_ABORT_WAIT. (What decode
        would get of pages that have become somebody else's, it throws away: its side has failed,
        too.)"""
        self.fail(room, cause)
        end = time.monotonic() + self._settings.abort_wait
        while self.live(room):
            if time.monotonic() > end:
                logger.warning("kvxfer: room %d: its pages are given back while they are still "
                               "being read", room)
                return
            time.sleep(_SETTLE_EVERY_S)
            self.progress()

    def is_polled(self, sender: Any) -> bool:
        """Whether SGLang's scheduler will ask for the sender's status again."""
        scheduler = self._scheduler
        if scheduler is None:
            return False
        reqs = [*scheduler.disagg_prefill_inflight_queue,
                *scheduler.disagg_prefill_bootstrap_queue.queue]
        return any(req.disagg_kv_sender is sender for req in reqs)

    def is_abort_release_safe(self, bootstrap_room: int, required_acks: int) -> bool:
        """Decode: whether the pages of a failed room may be given back. ``required_acks`` is of
        SGLang's own protocol, which the ends of the transfers replace."""
        self.progress()
        return not self.live(bootstrap_room)

    # ---- prefill: what is to be sent

    def add_transfer_request(self, bootstrap_room: int, kv_indices: Any, index_slice: slice,
                             is_last_chunk: bool, aux_index: Optional[int] = None,
                             state_indices: Optional[Sequence[Any]] = None,
                             num_kv_tokens: Optional[int] = None, *, wait_event: Any = None,
                             indices_event: Any = None, trace_ctx: Any = None) -> None:
        """One chunk of a room: pages index_slice of the request, counted from decode's prefix; with
        the last one states and metadata."""
        with self._lock:
            state = self._rooms.get(bootstrap_room)
            if state is None or not state.left or state.cause is not None:
                return
            offer: Offer = state.transfers[-1]
            super().update_status(bootstrap_room, KVPoll.Transferring)
        try:
            after = self._shared(wait_event)
            for group in self._layout.kv:
                offer.add(group, index_slice.start, kv_indices, after=after)
            if is_last_chunk:
                self._add_last(offer, aux_index, state_indices, after)
        except errors.KvxferError as err:
            self.fail(bootstrap_room, str(err))

    def _shared(self, event: Any) -> Any:
        """SGLang's event is one of this process alone: one that the daemon can wait for is recorded
        behind it, on a stream that does nothing else. Where there is none, the event itself."""
        if event is None or self._events is None:
            return event
        import torch

        try:
            if self._after is None:
                make: Any = torch.cuda.Stream
                self._after = make()
            self._after.wait_event(event)
            return self._events.record(self._after) or event
        except errors.Invalid as err:
            logger.warning("kvxfer: the node's daemon cannot wait for this GPU's events, the "
                           "engine's process does: %s", err)
            self._events = None
            return event

    def _add_last(self, offer: Offer, aux_index: Optional[int],
                  state_indices: Optional[Sequence[Any]], after: Any) -> None:
        for groups, ids in zip(self._layout.states, self._layout.state_ids(state_indices)):
            for group in groups:
                offer.add(group, 0, ids, after=after)
        for group in self._layout.aux:
            offer.add(group, 0, [aux_index])
        offer.seal(deadline=float(envs.SGLANG_DISAGGREGATION_WAITING_TIMEOUT.get()))

    # ---- threads

    def _watch(self) -> None:
        """Pipeline parallel prefill: only the first stage polls its senders while they bootstrap,
        and asks the others' statuses."""
        while not self._stopping.wait(_CLAIM_EVERY_S):
            self.progress()
            with self._lock:
                rooms = self._rooms.ids()
            for room in rooms:
                self.claim(room)

    def _listen(self) -> None:
        """Deferred allocation: SGLang's control messages between the two sides."""
        while not self._stopping.is_set():
            try:
                if not self.server_socket.poll(500):
                    continue
                message = self.server_socket.recv_multipart()
                if self.disaggregation_mode == DisaggregationMode.PREFILL:
                    self._handle_bootstrap_message(message)
                    continue
                said = self.parse_kv_status_message(message)
                if said is not None and said[1] != KVPoll.Success:
                    room, status, rank, reason = said
                    self.apply_prefill_status(bootstrap_room=room, status=status, prefill_rank=rank,
                                              failure_reason=reason)
            except Exception:  # one bad message must not end the thread
                if not self._stopping.is_set():
                    logger.exception("kvxfer: a control message could not be handled")

    # ---- inspection

    def paths(self) -> Dict[str, str]:
        """Name of each peer rank -> the transport that the last bytes to or from it took."""
        return self.rank.paths()
