"""One request on the decode side (SGLang's KVReceiver). The scheduler's thread."""

from typing import Any, Dict, List, Optional, Tuple

from sglang.srt.disaggregation.base.conn import KVPoll, KVTransferDestination
from sglang.srt.disaggregation.common.conn import CommonKVReceiver, KVTransferError

from .. import errors
from ..pd import Endpoint
from .bootstrap import endpoint_of

__all__ = ["KvxferKVReceiver"]

_ABORTED = "Aborted by AbortReq."


class KvxferKVReceiver(CommonKVReceiver):
    """Bootstrapping: the prefill engine is not known yet. WaitingForInput: it is, and after
    ``send_metadata()`` its ranks are writing or will. Success: everything has arrived. Failed:
    nothing lands in the request's pages any more, and ``failure_exception()`` says why."""

    #: Whether the prefill side will hear of the room's end: it has been asked, or told that it will
    #: not be.
    _told = False
    conclude_state: Optional[int]
    abort_notified: bool

    def _register_kv_args(self) -> bool:
        """What ranks must know of each other they find out themselves."""
        return self.bootstrap_infos is not None

    def init(self, prefill_dp_rank: int) -> None:
        super().init(prefill_dp_rank)
        if self.conclude_state == KVPoll.Failed or self._check_fit():
            return
        self.conclude_state = KVPoll.Failed

    def _check_fit(self) -> bool:
        cause = None
        mgr, info = self.kv_mgr, self.prefill_info
        if self._endpoint() is None:
            cause = (f"the prefill engine at {self.bootstrap_addr} does not run the transfer "
                     "backend kvxfer: start it with --disaggregation-transfer-backend kvxfer")
        elif info.attn_tp_size != mgr.attn_tp_size and mgr.layout.tp_bound:
            cause = (f"prefill has attention TP size {info.attn_tp_size}, decode "
                     f"{mgr.attn_tp_size}, but this model holds {', '.join(mgr.layout.tp_bound)} "
                     "in a form that cannot be shared out anew: start both engines with the same "
                     "TP size")
        elif info.attn_cp_size > 1 and len(self.target_cp_ranks) > 1:
            cause = ("every context-parallel rank of the prefill engine sends, which kvxfer cannot "
                     "take: start it without SGLANG_DISAGGREGATION_ALL_CP_RANKS_TRANSFER, "
                     "--enable-dsa-cache-layer-split and --enable-kv-cache-sharding")
        if cause is not None:
            self._end(cause)
        return cause is None

    def _endpoint(self) -> Optional[Endpoint]:
        """None: not known (yet), or not one of kvxfer."""
        infos: List[Dict[str, Any]] = getattr(self, "bootstrap_infos", None) or []
        return endpoint_of(infos[0], self.prefill_dp_rank) if infos else None

    def send_metadata(self, kv_indices: Any, aux_index: Optional[int] = None,
                      state_indices: Optional[List[Any]] = None,
                      decode_prefix_len: Optional[int] = None,
                      destination: KVTransferDestination = KVTransferDestination.DEVICE,
                      device_kv_indices: Any = None) -> None:
        mgr = self.kv_mgr
        if destination != KVTransferDestination.DEVICE or device_kv_indices is not None:
            raise NotImplementedError("the transfer backend kvxfer writes to the KV pool of the "
                                      "device only: no host receive, no HiSparse")
        if self.conclude_state == KVPoll.Failed:
            return
        source = self._endpoint()
        if source is None:
            mgr.fail(self.bootstrap_room, "Could not fetch prefill parallel info from "
                                          f"bootstrap_addr: {self.bootstrap_addr}")
            return
        blocks: Dict[int, Tuple[int, Any]] = {group: (0, kv_indices) for group in mgr.layout.kv}
        try:
            for groups, ids in zip(mgr.layout.states, mgr.layout.state_ids(state_indices)):
                blocks.update((group, (0, ids)) for group in groups)
            if aux_index is not None:
                blocks.update((group, (0, [aux_index])) for group in mgr.layout.aux)
            mgr.open_expect(self.bootstrap_room, source, blocks, decode_prefix_len or 0)
            self._told = True
        except errors.KvxferError as err:
            mgr.fail(self.bootstrap_room, str(err))

    def _poll(self) -> int:
        self.kv_mgr.progress()
        status: int = super()._poll()
        return status

    def abort(self) -> None:
        """Ends the request early, also on the prefill side. Its status becomes Failed when nothing
        can land in its pages any more."""
        if not self._owns_bootstrap_room:
            self.conclude_state = KVPoll.Failed
            return
        self._end(_ABORTED)

    def ensure_abort_notified(self, *, force_arm: bool = False) -> None:
        """SGLang's word for: this rank has to give up, because another one has failed."""
        self._end("another rank of the decode engine failed")

    def _send_abort_notification(self, *, force_arm: bool = False) -> None:
        self._end("the request was dropped by the decode engine")

    def _end(self, cause: str) -> None:
        if self.conclude_state is None:
            source = self._endpoint()
            if source is not None and not self._told:  # prefill would wait for its time-out
                self.kv_mgr.decline(self.bootstrap_room, source, cause)
                self._told = True
            self.kv_mgr.fail(self.bootstrap_room, cause)
        # True: SGLang asks is_abort_release_safe() before it gives the pages back.
        self.abort_notified = self.abort_notified or self.kv_mgr.live(self.bootstrap_room)

    def _clear(self) -> None:
        super()._clear()
        self.kv_mgr.clear_room(self.bootstrap_room)

    def _check_waiting_timeout(self) -> Optional[int]:
        """Once asked for, the transfer has a deadline of its own."""
        if self.kv_mgr.live(self.bootstrap_room):
            return None
        status: Optional[int] = super()._check_waiting_timeout()
        return status

    def failure_exception(self) -> None:
        """Raises KVTransferError with the first cause. SGLang asks on every TP rank as soon as one
        rank has failed: the others end here, and their pages are held until nothing lands in
        them."""
        mgr, room = self.kv_mgr, self.bootstrap_room
        cause: Optional[str] = mgr.take_failure(room)
        self._end(cause or "another rank of the decode engine failed")
        if cause is not None and cause != _ABORTED:
            self.invalidate_cached_bootstrap_infos()  # prefill may have come back elsewhere
        self.conclude_state = KVPoll.Failed
        self.clear()
        raise KVTransferError(room, cause or "Failed due to an unknown reason from another rank",
                              is_from_another_rank=cause is None)
