"""The decode half of a worker: blocks that other engines fill. On the thread of the model runner;
nothing blocks."""

import logging
from collections import deque
from typing import Any, Deque, Dict, List, Mapping, Optional, Set, Tuple, Union

from .. import pd
from ..errors import KvxferError
from .config import Config
from .geometry import Layout
from .meta import Receive
from .sending import next_request

__all__ = ["Receiver"]

logger = logging.getLogger("vllm.kvxfer")


class Receiver:
    """Of one rank.

    Args:
        single_group: the engine has one KV-cache group: block ids say which tokens are lost. With
            several, an id means a block of any of them, and only the request can be named.
    """

    def __init__(self, rank: pd.Rank, layout: Layout, config: Config, single_group: bool) -> None:
        self._rank = rank
        self._layout = layout
        self._config = config
        self._single_group = single_group
        self._open: Dict[str, Tuple[Receive, Union[pd.Expect, pd.Fetch]]] = {}
        self._requests: Dict[str, Deque[str]] = {}  #: as Sender's
        self._aborted: Set[str] = set()
        self._received: Set[str] = set()
        self._failed: Set[str] = set()
        self._lost: Set[int] = set()

    def receive(self, entry: Receive) -> None:
        """Asks the other engine for the blocks; with none, tells it that none are needed."""
        wanted, config = self._layout.own(entry.blocks), self._config
        thing: Union[pd.Expect, pd.Fetch]
        try:
            if config.read_mode:
                thing = self._rank.fetch(entry.transfer, entry.source, wanted, label=entry.label,
                                         deadline=config.transfer_timeout)
            else:
                thing = self._rank.expect(entry.transfer, entry.source, wanted, label=entry.label,
                                          deadline=config.recv_abort_timeout)
        except KvxferError as err:
            logger.error("kvxfer: request %s cannot be received: %s", entry.label, err)
            if entry.request:
                self._received.add(entry.request)
                self._lose(entry, {})
            return
        self._requests.setdefault(entry.transfer, deque()).append(entry.request or "")
        if entry.request:
            self._open[entry.request] = (entry, thing)

    def done(self, request: str) -> None:
        """The scheduler has done with a request: one that still waits was aborted. It is told as
        received once nothing is written into its blocks any more."""
        waiting = self._open.get(request)
        if waiting is not None:
            self._aborted.add(request)
            waiting[1].cancel("the request was aborted")

    def ended(self, outcome: pd.Outcome) -> Optional[str]:
        """Takes the end of an expect or fetch. Returns the request, if one waited for it."""
        request = next_request(self._requests, outcome.id)
        if request is None:
            return None
        entry, _ = self._open.pop(request)
        self._received.add(request)
        if request in self._aborted:
            self._aborted.discard(request)
        elif not outcome.ok:
            self._lose(entry, outcome.blocks)
        return request

    def take(self) -> Tuple[Set[str], Set[str]]:
        """Requests that wait no more, each once, and those of them that have to be computed."""
        received, self._received = self._received, set()
        failed, self._failed = self._failed, set()
        return received, failed

    def take_lost_blocks(self) -> Set[int]:
        """Blocks of vLLM's tables that have no valid KV."""
        lost, self._lost = self._lost, set()
        return lost

    def _lose(self, entry: Receive, undefined: Mapping[int, Any]) -> None:
        """``undefined``: blocks per group of ours; {}: all that were asked for."""
        if not self._single_group:
            self._failed.add(entry.request)
            return
        lost: List[int] = []
        for group, blocks in undefined.items():
            lost += self._layout.table_blocks(group, blocks)
        self._lost.update(lost or (block for _, run in entry.blocks.values() for block in run))
