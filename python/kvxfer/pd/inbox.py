"""What other ranks say: from frames to whom it concerns. Rank's lock held for everything."""

import logging
from typing import Any, Dict

from ..errors import KvxferError, Quota
from . import messages
from .asks import read_ask
from .joiner import WHOLE_MAX, Joiner
from .rendezvous import Hub
from .sources import Sources

__all__ = ["Inbox"]

_log = logging.getLogger("kvxfer")

#: What an unreadable message may make of the code that reads it.
_UNREADABLE = (KvxferError, ValueError, TypeError, KeyError, IndexError, OverflowError,
               AttributeError)


class Inbox:
    """``listeners``: the hub's, by token."""

    def __init__(self, hub: Hub, sources: Sources, listeners: Dict[int, Any]) -> None:
        self._hub, self._sources, self._listeners = hub, sources, listeners
        self._n_warned: Dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """What is not whole is forgotten: the daemon is lost."""
        self._joiner = Joiner(self._on_dropped)

    def on_frame(self, frame: bytes) -> None:
        try:
            data = self._joiner.add(frame)
            if data is not None:
                self._hub.count("messages_in")
                self._on_message(messages.unpack(data))
        except _UNREADABLE as error:
            self._warn("messages_bad", error)

    def _on_message(self, message: messages.Message) -> None:
        if message.kind in (messages.READY, messages.CLAIM):
            self._sources.ask(read_ask(message, self._hub.geometry, self._hub.now()))
        elif message.kind in (messages.CANCEL, messages.RELEASE):
            self._sources.unask(message.kind, message.fields)
        else:
            self._on_answer(message)

    def _on_answer(self, message: messages.Message) -> None:
        token = message.fields.get("token")
        listener = self._listeners.get(token) if isinstance(token, int) else None
        f, hub = message.fields, self._hub
        if listener is not None:
            hub.guard(listener, listener.on_message, message)
        elif message.kind == messages.REVOKE and f.get("life") == hub.geometry.life:
            # Of a fetch that has ended: nothing is read.
            self._sources.tell(str(f.get("from")), str(f.get("at")), messages.RELEASE, {
                "id": f.get("id"), "role": "hold", "token": token, "from": hub.name,
                "at": hub.address, "status": f.get("status"), "text": f.get("text")})

    def _on_dropped(self, beginning: bytes) -> None:
        """A message had to make room. Whom it concerns is told, as far as its beginning says."""
        error = Quota(f"{self._hub.name}: messages that are not whole take more than {WHOLE_MAX} "
                      "bytes, and this one was the longest: too many or too long requests at once")
        self._warn("messages_dropped", error)
        try:
            kind, fields = messages.head_of(beginning)
            if kind in (messages.READY, messages.CLAIM):
                self._sources.dropped(kind, fields, error)
            else:
                listener = self._listeners.get(int(fields["token"]))
                if listener is not None:
                    listener.on_defect(error)
        except _UNREADABLE as err:
            _log.debug("kvxfer: %s: a message that was dropped: %r", self._hub.name, err)

    def _warn(self, what: str, error: Exception) -> None:
        """Counts it; logs the first, the second, the fourth, the eighth, ...: who sends garbage
        must not fill the log."""
        self._hub.count(what)
        n = self._n_warned[what] = self._n_warned.get(what, 0) + 1
        if n & (n - 1) == 0:
            _log.warning("kvxfer: %s: %s (%s: %d)", self._hub.name, error, what, n)
