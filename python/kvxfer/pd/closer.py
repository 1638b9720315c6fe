"""Closes imports that are not used any more. A close waits for the daemon's answer, and whoever
calls the client meanwhile waits with it: so a thread of its own does it, and nobody calls the
client until it is over. What the rank has to say then is said afterwards."""

import logging
import threading
from collections import deque
from typing import Callable, Deque, Sequence

from ..errors import DaemonLost, KvxferError
from ..region import Import

__all__ = ["Closer"]

_log = logging.getLogger("kvxfer")

_PAUSE_FIRST_S = 0.5  #: after a close that the daemon has not answered
_PAUSE_MOST_S = 30.0


class Closer:
    """``lock``: the rank's; held for ``add()`` and for reading ``busy``.

    Attributes:
        busy: a call of the client would wait. Changes while the lock is held only.
    """

    def __init__(self, lock: threading.RLock, name: str, over: Callable[[], None]) -> None:
        """``over``: called with the lock held each time that the client is free again."""
        self.busy = False
        self._name, self._over = name, over
        self._cond = threading.Condition(lock)
        self._imports: Deque[Import] = deque()
        self._pause = _PAUSE_FIRST_S
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="kvxfer-pd-closer", daemon=True)

    def __len__(self) -> int:
        return len(self._imports)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lock not held. What was not closed yet is closed with the client. Blocks for as long as
        one close, at most the client's time-out."""
        with self._cond:
            self._stopping = True
            self._cond.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def add(self, imports: Sequence[Import]) -> None:
        self._imports.extend(imports)
        if imports:
            self._cond.notify_all()

    def _run(self) -> None:
        while True:
            with self._cond:
                while not (self._imports or self._stopping):
                    self._cond.wait()
                if self._stopping:
                    return
                import_ = self._imports.popleft()
                self.busy = True
            closed = self._close(import_)
            with self._cond:
                self.busy = False
                self._over()
                if closed:
                    self._pause = _PAUSE_FIRST_S
                elif not self._stopping:
                    self._imports.append(import_)
                    self._cond.wait(self._pause)
                    self._pause = min(2 * self._pause, _PAUSE_MOST_S)

    def _close(self, import_: Import) -> bool:
        """False: not known to be closed; to be tried again."""
        try:
            import_.close()
        except DaemonLost:
            return True
        except KvxferError as error:
            _log.warning("kvxfer: %s: an import was not closed and is tried again: %s",
                         self._name, error)
            return False
        except Exception:
            _log.exception("kvxfer: %s: an import was not closed: please report it", self._name)
        return True
