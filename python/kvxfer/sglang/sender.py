"""One request on the prefill side (SGLang's KVSender). The scheduler's thread."""

from typing import Any, Optional

from sglang.srt.disaggregation.base.conn import KVPoll, KVTransferMetric
from sglang.srt.disaggregation.common.conn import CommonKVSender, KVTransferError

from .. import errors

__all__ = ["KvxferKVSender"]

_ABORTED = "Aborted by AbortReq."


class KvxferKVSender(CommonKVSender):
    """Bootstrapping: decode ranks have not all said where their pages are. WaitingForInput: they
    have. Transferring: from the first ``send()``. Success: all of them have everything. Failed:
    nothing of the request is being read any more, and ``failure_exception()`` says why."""

    def __init__(self, mgr: Any, bootstrap_addr: str, bootstrap_room: int,
                 req_has_disagg_prefill_dp_rank: bool = False) -> None:
        self._nbytes = 0
        super().__init__(mgr, bootstrap_addr, bootstrap_room, req_has_disagg_prefill_dp_rank)
        if mgr.is_dummy_cp_rank or mgr.request_status.get(bootstrap_room) != KVPoll.Bootstrapping:
            return
        try:
            mgr.open_offer(bootstrap_room)
        except errors.KvxferError as err:
            mgr.fail(bootstrap_room, str(err))

    def _poll_with_status(self, check_status: Any) -> int:
        mgr = self.kv_mgr
        mgr.progress()
        mgr.claim(self.bootstrap_room)
        status: int = super()._poll_with_status(check_status)
        return status

    def get_transfer_metric(self) -> KVTransferMetric:
        """Bytes that left this rank, counted by the transfers themselves."""
        self._transfer_metric.transfer_total_bytes = self._nbytes
        return self._transfer_metric

    def clear(self) -> None:
        self._nbytes = self.kv_mgr.nbytes(self.bootstrap_room)
        super().clear()
        self.kv_mgr.clear_room(self.bootstrap_room)

    def abort(self) -> None:
        """Ends the request early, also on the decode side. SGLang polls requests in its bootstrap
        and inflight queues to their end; of others it gives the pages back at once, so this waits
        for the end of what is being read: at most KVXFER_SGLANG_ABORT_WAIT."""
        mgr = self.kv_mgr
        if mgr.deferred_bootstrap is not None and not self._owns_bootstrap_room:
            return
        self.trace_ctx.abort(abort_info={"reason": "Aborted"})
        if mgr.is_polled(self):
            mgr.fail(self.bootstrap_room, _ABORTED)
            return
        mgr.settle(self.bootstrap_room, _ABORTED)
        self.conclude_state = KVPoll.Failed  # nobody asks again
        self.clear()
        self.trace_ctx.trace_req_finish()

    def failure_exception(self) -> None:
        """Raises KVTransferError with the first cause. SGLang asks on every TP rank as soon as one
        rank has failed: the others end here, and say so to the decode side."""
        mgr, room = self.kv_mgr, self.bootstrap_room
        cause: Optional[str] = mgr.take_failure(room)
        if mgr.live(room):
            mgr.settle(room, cause or "another rank of the prefill engine failed")
        self.conclude_state = KVPoll.Failed
        self.clear()
        self.trace_ctx.trace_req_finish()
        raise KVTransferError(room, cause or "Failed due to an unknown reason from another rank",
                              is_from_another_rank=cause is None)
