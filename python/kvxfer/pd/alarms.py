"""Calls that are to be made at a time. Rank's lock held for everything."""

import heapq
import itertools
import math
from typing import Any, Callable, List

from .rendezvous import Alarm

__all__ = ["Alarms"]

_NEVER = math.inf


class Alarms:
    """A heap; what is taken back stays in it until it is half of it."""

    def __init__(self) -> None:
        self._heap: List[Alarm] = []
        self._n_off = 0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float:
        """When the next one rings; infinite: none is set."""
        return float(self._heap[0][0]) if self._heap else _NEVER

    def add(self, when: float, call: Callable[[], Any]) -> Alarm:
        alarm: Alarm = [when, next(self._numbers), call]
        heapq.heappush(self._heap, alarm)
        return alarm

    def remove(self, alarm: Alarm) -> None:
        """Does nothing where it has rung or was never set."""
        if alarm[2] is None:
            return
        alarm[2] = None
        self._n_off += 1
        if self._n_off > 64 and 2 * self._n_off > len(self._heap):
            self._heap = [one for one in self._heap if one[2] is not None]
            heapq.heapify(self._heap)
            self._n_off = 0

    def ring(self, now: Callable[[], float], run: Callable[[Callable[[], Any]], Any]) -> None:
        """Runs what is due."""
        while self._heap and self._heap[0][0] <= now():
            alarm = heapq.heappop(self._heap)
            call, alarm[2] = alarm[2], None
            if call is None:
                self._n_off -= 1
            else:
                run(call)
