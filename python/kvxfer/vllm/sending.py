"""The prefill half of a worker: offers that are filled layer by layer, and blocks that are held to
be read. On the thread of the model runner; nothing blocks but preempted()."""

import logging
import time
from collections import deque
from typing import Any, Deque, Dict, Iterable, List, Optional, Set, Tuple, Union

import numpy
import torch

from .. import pd
from ..errors import Invalid, KvxferError
from ..wait import EventPool
from . import ids
from .config import Config
from .geometry import Layout
from .meta import Hold, Send, StepMeta

__all__ = ["Sender"]

logger = logging.getLogger("vllm.kvxfer")

#: An offer does not expire while its prompt is being computed; the scheduler ends it if need be.
_COMPUTING_S = 24 * 3600.0
_RETRACT_S = 5.0
_PIECES = 16

Layer = Tuple[int, int]  #: group, layer in it


class Sender:
    """Of one rank.

    Args:
        device: type of the device that the KV cache is on.
    """

    def __init__(self, rank: pd.Rank, layout: Layout, config: Config, device: str) -> None:
        self._rank = rank
        self._layout = layout
        self._config = config
        self._device = device
        self._events = EventPool.of_torch(device)
        self._at_a_time = config.stream_layers
        if self._at_a_time < 0:
            self._at_a_time = -(-len(layout.layers) // _PIECES)
        self._all = _ranges(layout.layers.values())
        #: Request -> its offer or hold, until that has ended; transfer id -> request.
        self._open: Dict[str, Union[pd.Offer, pd.Hold]] = {}
        #: Transfer id -> requests, oldest first, as their ends come; "": nobody waits for it.
        self._requests: Dict[str, Deque[str]] = {}
        #: Requests whose transfer has ended; those of them, and of the open ones, that the
        #: scheduler has done with.
        self._ended: Set[str] = set()
        self._done: Set[str] = set()
        #: Layers of this step: sent; computed, and waiting to be sent together.
        self._sent: Set[Layer] = set()
        self._ready: List[Layer] = []
        #: Block ids of this step's Sends, per group of ours.
        self._runs: Dict[Tuple[str, int], Tuple[int, Any]] = {}

    # ---- WRITE

    def preempted(self, requests: Iterable[str]) -> None:
        """Nothing reads the blocks of these requests when this returns."""
        for request in requests:
            offer, since = self._open.get(request), time.monotonic()
            while isinstance(offer, pd.Offer) and not offer.retract(_RETRACT_S):
                logger.warning("kvxfer: request %s was preempted, and its blocks are still being "
                               "read after %.0f s: waiting", request, time.monotonic() - since)

    def layer(self, meta: StepMeta, name: str) -> None:
        """The layer's KV of this step is computed (as soon as the stream has come this far)."""
        if not meta.sends or not self._at_a_time:
            return
        where = self._layout.layers.get(name)
        if where is None or where in self._sent:
            return
        self._ready.append(where)
        if len(self._ready) >= self._at_a_time:
            self._add(meta, _ranges(self._ready))
            self._sent.update(self._ready)
            self._ready.clear()

    def rest(self, meta: StepMeta) -> None:
        """All layers are: those that layer() has not been told of, too."""
        if not meta.sends:
            return
        self._add(meta, self._all if not self._sent else _ranges(
            where for where in self._layout.layers.values() if where not in self._sent))
        for send in meta.sends:
            offer = self._offer(send) if send.last else None
            if offer is not None:
                offer.seal(deadline=self._config.defer_timeout + self._config.transfer_timeout)
        self._sent.clear()
        self._ready.clear()
        self._runs.clear()

    def _add(self, meta: StepMeta, layers: List[Tuple[int, range]]) -> None:
        event = self._record()
        for send in meta.sends:
            offer = self._offer(send)
            if offer is None:
                continue
            try:
                for group, run in layers:
                    blocks = self._run(send, group)
                    if blocks is not None:
                        offer.add(group, blocks[0], blocks[1], layers=run, after=event)
            except KvxferError as err:
                logger.error("kvxfer: request %s: %s", send.request, err)
                offer.cancel(f"the prefill side could not send: {err}")

    def _run(self, send: Send, group: int) -> Optional[Tuple[int, Any]]:
        """(first block, ids) of what a Send has of a group; None: nothing."""
        known = self._runs.get((send.request, group))
        if known is None:
            run = send.blocks.get(self._layout.origin[group])
            if run is None:
                return None
            first, blocks = self._layout.expand(group, run)
            known = self._runs[send.request, group] = (first, numpy.asarray(blocks, numpy.int64))
        return known

    def _offer(self, send: Send) -> Optional[pd.Offer]:
        """The offer of a request, made when it is first asked for. None: it has ended."""
        known = self._open.get(send.request)
        if known is None and send.request not in self._ended:
            try:
                known = self._rank.offer(send.transfer, deadline=_COMPUTING_S,
                                         label=ids.label(send.request))
            except KvxferError as err:
                self._refused(send.request, err)
            else:
                self._keep(send.request, send.transfer, known)
        assert known is None or isinstance(known, pd.Offer)
        return known

    def _record(self) -> Any:
        """What is behind all that the GPU has been given so far, for the daemon to wait for; where
        it cannot, an event that kvxfer.pd asks. None on the CPU, which is in step."""
        if self._device == "cpu":
            return None
        try:
            wait = self._events.record() if self._events is not None else None
        except Invalid as err:
            logger.warning("kvxfer: the node's daemon cannot wait for this GPU's events, the "
                           "engine's process does: %s", err)
            self._events = wait = None
        if wait is not None:
            return wait
        event: Any = torch.Event(self._device)
        event.record()
        return event

    # ---- READ

    def hold(self, hold: Hold) -> None:
        """The request's blocks can be read from now on."""
        try:
            thing = self._rank.hold(hold.transfer, self._layout.own(hold.blocks),
                                    deadline=self._config.defer_timeout,
                                    label=ids.label(hold.request))
        except KvxferError as err:
            self._refused(hold.request, err)
        else:
            self._keep(hold.request, hold.transfer, thing)

    # ---- ends

    def cancel(self, request: str, why: str) -> None:
        """Both sides end it; told as sent once nothing reads its blocks."""
        known = self._open.get(request)
        if known is not None:
            known.cancel(why)

    def refuse(self, transfer: str, why: str) -> None:
        """The decode side of a request that ends before anything of it was sent hears why."""
        try:
            offer = self._rank.offer(transfer, deadline=self._config.defer_timeout)
        except KvxferError as err:
            logger.warning("kvxfer: transfer %s: %s", transfer, err)
            return
        self._requests.setdefault(transfer, deque()).append("")
        offer.cancel(why)

    def done(self, request: str) -> None:
        """The scheduler has done with a request, of this half or not."""
        if request in self._open or request in self._ended:
            self._done.add(request)

    def ended(self, outcome: pd.Outcome) -> Optional[str]:
        """Takes the end of an offer or hold. Returns the request, if there is one."""
        request = next_request(self._requests, outcome.id)
        if request is not None:
            del self._open[request]
            self._ended.add(request)
        return request

    def take_sent(self) -> Set[str]:
        """Requests whose blocks can be freed: each once."""
        if not self._done:
            return set()
        sent = self._done & self._ended
        self._done -= sent
        self._ended -= sent
        return sent

    def _keep(self, request: str, transfer: str, thing: Union[pd.Offer, pd.Hold]) -> None:
        self._open[request] = thing
        self._requests.setdefault(transfer, deque()).append(request)

    def _refused(self, request: str, err: KvxferError) -> None:
        """Nothing was begun: nothing of the request's is in use."""
        logger.error("kvxfer: request %s cannot be sent: %s", request, err)
        self._ended.add(request)


def next_request(requests: Dict[str, Deque[str]], transfer: str) -> Optional[str]:
    """Takes out who waits for the oldest end of a transfer id; None: nobody does. An id may be used
    again as soon as it has ended, which is before its end is read here."""
    queue = requests.get(transfer)
    request = queue.popleft() if queue else ""
    if not queue:
        requests.pop(transfer, None)
    return request or None


def _ranges(layers: Iterable[Layer]) -> List[Tuple[int, range]]:
    """Layers of each group as ranges."""
    runs: List[Tuple[int, range]] = []
    for group, layer in sorted(layers):
        if runs and runs[-1][0] == group and runs[-1][1].stop == layer:
            runs[-1] = (group, range(runs[-1][1].start, layer + 1))
        else:
            runs.append((group, range(layer, layer + 1)))
    return runs
