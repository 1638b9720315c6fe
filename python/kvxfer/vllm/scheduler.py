"""The scheduler side: which requests send, receive or hold which blocks, step by step.

In the engine's scheduler process; no daemon, no GPU. What it decides goes to the workers as a
StepMeta at each step. Nothing here blocks.
"""

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from vllm.v1.request import RequestStatus

from ..pd import Endpoint
from . import blocks, ids
from .config import Config
from .meta import Handshake, Hold, Receive, Send, StepMeta, describe

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

__all__ = ["Scheduler"]

logger = logging.getLogger("vllm.kvxfer")

_FINISHED_WELL = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)

_REMEMBERED = 4096

BlockTables = Sequence[Sequence[int]]


@dataclass
class _Prefill:
    """A request whose KV another engine wants (WRITE)."""

    request: "Request"
    transfer: str
    #: Per transfer group: logical blocks already told to the workers.
    done: List[int]
    told: bool = False
    complete: bool = False


class Scheduler:
    """One per scheduler process."""

    def __init__(self, config: Config, vllm_config: "VllmConfig",
                 kv_cache_config: "KVCacheConfig") -> None:
        self._config = config
        self._groups = tuple(kv_cache_config.transfer_group_ids)
        self._rules = [blocks.rule_of(kv_cache_config.kv_cache_groups[g].kv_cache_spec)
                       for g in self._groups]
        #: A state, and a window that has moved on, cannot take back the last token, which the
        #: decode side computes again to sample from it: both sides stop one token short then.
        self._short = int(any(not blocks.stable(rule) for rule in self._rules))
        parallel = vllm_config.parallel_config
        self._tp_size = parallel.tensor_parallel_size
        self._dp_rank = parallel.data_parallel_rank
        self._dp_size = parallel.data_parallel_size
        self._dp_size_local = parallel.data_parallel_size_local
        self._me: Optional[Handshake] = None
        self._prefills: Dict[str, _Prefill] = {}
        self._computed: Dict[str, int] = {}
        #: Transfers that the decode side has asked for, the last ones.
        self._asked: "OrderedDict[str, None]" = OrderedDict()
        self._next = StepMeta()

    def set_handshake(self, metadata: Mapping[Any, Any]) -> None:
        """What the workers said at the start: rank -> Handshake."""
        if metadata:
            self._me = metadata[min(metadata)]

    # ---- before a request is scheduled

    def on_new_request(self, request: "Request") -> None:
        """Prefill of models with states or windows: one token less (see ``_short``)."""
        params = request.kv_transfer_params
        if not self._short or not params or not params.get("do_remote_decode"):
            return
        if params.get("_kvxfer_short") or request.num_prompt_tokens < 2:
            return
        params["_kvxfer_short"] = True
        _drop_last_token(request)

    def matched_tokens(self, request: "Request", computed: int) -> Tuple[int, bool]:
        """How many tokens behind the first ``computed`` come from another engine, and that they
        come between steps."""
        params = request.kv_transfer_params
        if not params or not params.get("do_remote_prefill"):
            return 0, False
        n = request.num_prompt_tokens - self._short - computed
        if n <= 0 or self._source(request) is None:
            return 0, False
        self._computed[request.request_id] = computed
        return n, True

    def after_alloc(self, request: "Request", tables: BlockTables, n_external: int) -> None:
        """The request has its blocks: all that it has, per KV-cache group."""
        params = request.kv_transfer_params
        if not params:
            return
        start = self._computed.pop(request.request_id, 0)
        if params.get("do_remote_prefill"):
            params["do_remote_prefill"] = False  # at most once; a retry computes here
            self._receive(request, tables, start, start + n_external)
        elif params.get("do_remote_decode") and not self._config.read_mode:
            self._prefills.setdefault(request.request_id, _Prefill(
                request, self._transfer_id(request), [0] * len(self._groups)))

    def _receive(self, request: "Request", tables: BlockTables, start: int, end: int) -> None:
        source = self._source(request)
        if source is None:
            return
        self._remember(request)
        wanted = {}
        if end > start:
            for group, (index, rule) in enumerate(zip(self._groups, self._rules)):
                run = blocks.wanted(rule, tables[index], start, end)
                if run[1]:
                    wanted[group] = run
        self._next.receives.append(Receive(
            request.request_id if end > start else "", self._transfer_id(request),
            ids.label(request.request_id), source, wanted))

    def _release(self, request: "Request") -> None:
        """Tells the prefill side that nothing is needed. vLLM asks for this, too, under another id
        and after the fact, for requests that its server answered with an error."""
        base = ids.transfer_base(request.request_id, request.kv_transfer_params or {})
        if base in self._asked:
            return
        try:
            ids.source_endpoint(request.request_id, request.kv_transfer_params or {})
        except ValueError:
            logger.info("kvxfer: request %s ended before it had blocks and does not say where its "
                        "prefill runs, which frees its blocks after its defer_timeout (%s)",
                        request.request_id, describe(request.kv_transfer_params))
        else:
            self._receive(request, (), 0, 0)

    def _remember(self, request: "Request") -> None:
        base = ids.transfer_base(request.request_id, request.kv_transfer_params or {})
        self._asked[base] = None
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)

    # ---- at each step

    def step(self, output: "SchedulerOutput") -> StepMeta:
        """The StepMeta of the step that ``output`` describes."""
        meta, self._next = self._next, StepMeta()
        for request_id in output.preempted_req_ids or ():
            known = self._prefills.get(request_id)
            if known is None:
                continue
            if known.told:
                meta.preempted.append(request_id)
            known.done = [0] * len(self._groups)  # all is sent again, from the blocks it gets then
            known.complete = False
        state = output.kv_connector_block_state
        if self._prefills and state is not None:
            for request_id, n in output.num_scheduled_tokens.items():
                prefill = self._prefills.get(request_id)
                if prefill is None or prefill.complete:
                    continue
                tables = state.get_block_ids(request_id)
                if tables is not None:
                    self._send(meta, prefill, tables, prefill.request.num_computed_tokens + n)
        return meta

    def _send(self, meta: StepMeta, prefill: _Prefill, tables: BlockTables, computed: int) -> None:
        end = prefill.request.num_prompt_tokens
        ready = {}
        for group, (index, rule) in enumerate(zip(self._groups, self._rules)):
            first, run = blocks.offered(rule, tables[index], prefill.done[group], computed, end)
            if run:
                ready[group] = (first, run)
                prefill.done[group] = first + len(run)
        prefill.complete = computed >= end
        if ready or prefill.complete or not prefill.told:
            prefill.told = True
            meta.sends.append(Send(prefill.request.request_id, prefill.transfer, ready,
                                   prefill.complete))

    # ---- at the end of a request

    def finished(self, request: "Request",
                 tables: BlockTables) -> Tuple[bool, Optional[Dict[str, Any]]]:
        """Whether its blocks stay until the workers say that they are sent, and what the proxy
        hands to the decode engine."""
        params = request.kv_transfer_params
        self._computed.pop(request.request_id, None)
        if not params:
            return False, None
        if params.get("do_remote_prefill"):  # ended before it had blocks: free the other side's
            params["do_remote_prefill"] = False
            self._release(request)
            return False, None
        if not params.get("do_remote_decode"):
            return False, None
        well = request.status in _FINISHED_WELL
        if not self._config.read_mode:
            return self._finish_send(request, tables, well)
        if not well:
            return False, None
        held = self._held(request, tables)
        if not held:
            return False, None
        transfer = self._transfer_id(request)
        self._next.holds.append(Hold(request.request_id, transfer, held))
        return True, self._answer(request, tables)

    def _finish_send(self, request: "Request", tables: BlockTables,
                     well: bool) -> Tuple[bool, Optional[Dict[str, Any]]]:
        prefill = self._prefills.pop(request.request_id, None)
        why = f"the prefill ended with {request.status.name.lower()}"
        if prefill is None or not prefill.told:
            self._next.refusals[self._transfer_id(request)] = why
            return False, None
        if not (well and prefill.complete):
            self._next.cancels[request.request_id] = why
            return True, None
        return True, self._answer(request, tables)

    def _held(self, request: "Request",
              tables: BlockTables) -> Dict[int, Tuple[int, List[int]]]:
        end = request.num_prompt_tokens
        held = {}
        for group, (index, rule) in enumerate(zip(self._groups, self._rules)):
            run = blocks.wanted(rule, tables[index], 0, end)
            if run[1]:
                held[group] = run
        return held

    def _answer(self, request: "Request", tables: BlockTables) -> Dict[str, Any]:
        """kv_transfer_params for the decode request, with the keys that proxies and llm-d's
        sidecar know. The block ids are for them; our own workers tell each other theirs."""
        params = request.kv_transfer_params or {}
        me = self._me or Handshake(self._config.host_ip, 0)
        return {
            "do_remote_prefill": True, "do_remote_decode": False,
            "remote_block_ids": [list(tables[group]) for group in self._groups],
            "remote_engine_id": ids.format_zmq(ids.Peer(me.host, me.port, self._config.number)),
            "remote_request_id": request.request_id,
            "remote_host": me.host,
            "remote_port": me.port,
            "remote_handshake_port": me.port,
            "remote_notify_port": self._config.number,
            "remote_dp_rank": self._dp_rank, "remote_dp_rank_override": True,
            "remote_dp_size": self._dp_size,
            "remote_dp_size_local": self._dp_size_local,
            "tp_size": self._tp_size, "remote_tp_size": self._tp_size,
            "transfer_id": ids.transfer_base(request.request_id, params),
        }

    # ---- names

    def _transfer_id(self, request: "Request") -> str:
        return ids.transfer_id(request.request_id, request.kv_transfer_params or {})

    def _source(self, request: "Request") -> Optional[Endpoint]:
        """Of a decode request. None, and a log line: it does not say, or may not; the request is
        computed here then."""
        params = request.kv_transfer_params or {}
        try:
            source = ids.source_endpoint(request.request_id, params)
        except ValueError as err:
            logger.error("kvxfer: %s: its prompt is computed here (%s)", err, describe(params))
            return None
        allowed = self._config.allowed_peers
        host = source.address.rpartition(":")[0].strip("[]")
        if allowed and source.address and not {host, source.address} & allowed:
            logger.error("kvxfer: request %s names the daemon %s, not one of allowed_peers: "
                         "its prompt is computed here", request.request_id, source.address)
            return None
        return source


def _drop_last_token(request: "Request") -> None:
    if request.prompt_token_ids is not None:
        request.prompt_token_ids = request.prompt_token_ids[:-1]
    if request.prompt_embeds is not None:
        request.prompt_embeds = request.prompt_embeds[:-1]
    request._all_token_ids.pop()
    request.num_prompt_tokens -= 1
    request.max_tokens = 1
    hasher = request._block_hasher
    if hasher is not None:  # the hash of a block that is full no more
        request.block_hashes = []
        request.update_block_hashes()
