"""Threads of an engine that sleep until a client has read events."""

import math
import os
import select
import threading
from typing import Optional

__all__ = ["Sleepers"]


class Sleepers:
    """One of them polls the client's fd, the others wait for it; whoever reads events tells them
    all. Any thread."""

    def __init__(self, fd: int) -> None:
        self.generation = 0
        self._fd = fd
        self._cond = threading.Condition()
        self._polling = False
        self._wake = (-1, -1)

    def sleep(self, seen: int, left: Optional[float]) -> None:
        """Returns when events may have been read since generation was ``seen``, when there may be
        some to read, or after ``left`` seconds; also without a reason."""
        with self._cond:
            if self.generation != seen:
                return
            if self._polling:
                self._cond.wait(left)
                return
            self._polling = True
            if self._wake[0] < 0:
                self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            poller.register(self._wake[0], select.POLLIN)
            poller.poll(None if left is None else min(math.ceil(left * 1000), 2**31 - 1))
        finally:
            with self._cond:
                self._polling = False
                if self.generation != seen:
                    _drain(self._wake[0])
                self._cond.notify_all()

    def told(self) -> None:
        with self._cond:
            self.generation += 1
            if self._polling:
                try:
                    os.write(self._wake[1], b"x")
                except BlockingIOError:  # full: it wakes
                    pass
            self._cond.notify_all()

    def __del__(self) -> None:
        for fd in self._wake:
            if fd >= 0:
                os.close(fd)


def _drain(fd: int) -> None:
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        pass
