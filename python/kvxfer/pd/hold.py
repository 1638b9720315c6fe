"""READ, the prefill side: blocks that are kept until they have been read."""

from ..errors import Cancelled, Invalid, KvxferError, NotFound
from ..events import Event
from .messages import GRANT, REVOKE, no_ids
from .plan import Span
from .rendezvous import CAUSE_S, FENCE_MOST_S, Hub, Wanted, error_fields, insist, spans
from .source import ASKED, ENDING, OPEN, Dest, Source, Want
from .sources import Sources
from .stream import Stream

__all__ = ["Hold"]


class Hold(Source):
    """Blocks that are kept to be read by a decode engine (``Rank.hold``). Any thread.

    Attributes:
        id: of the request.
        claimed, infos: as of an ``Offer``.
        ended: whether its Outcome is there.
    """

    role = "hold"

    def __init__(self, hub: Hub, sources: Sources, id: str, blocks: Wanted, deadline: float,
                 label: str) -> None:
        super().__init__(hub, sources, id, deadline, label)
        self._blocks = spans(hub.geometry, blocks)

    def _all_added(self) -> bool:
        return True

    def _dest_up(self, dest: Dest) -> None:
        """The destination can be answered: it gets the block ids."""
        if dest.state == ENDING:
            self._dest_tell_end(dest)
        if dest.state != ASKED:
            return
        try:
            self._check_life(dest)
            ids = [self._ids_of(dest, want) for want in dest.ask.wants]
        except KvxferError as error:
            self._fail(error)
            return
        if not self._hub.listen(dest.ask.token, dest):
            self._fail(Invalid(f"{dest.ask.name} has used a token twice: please report this"))
            return
        dest.state = OPEN
        dest.peer.send(GRANT, {"id": self.id, "token": dest.ask.token}, ids)

    def _ids_of(self, dest: Dest, want: Want) -> "memoryview":
        held = self._blocks.get(want.src_group, Span(0, no_ids()))
        first, end = want.span.first, want.span.first + want.n_blocks
        if first < held.first or end > held.first + len(held.ids):
            name = self._hub.geometry.groups[want.src_group].name
            raise Invalid(f"{self.id!r}, group {name!r}: {dest.ask.name} wants blocks "
                          f"{first}..{end - 1}, but {len(held.ids)} from {held.first} on are held")
        return held.ids[first - held.first:end - held.first]

    def _dest_arrival(self, dest: Dest, event: Event) -> None:
        """One of its reads has ended."""
        if dest.state not in (OPEN, ENDING):
            return
        self._count(event.bytes, {event.transport} if event.transport else set())
        dest.arrived += 1
        error = event.error
        if error is None:
            if dest.arrived >= dest.ask.n_pairs:
                self._read_end(dest)
        elif dest.ask.n_pairs > 1 or isinstance(error, Cancelled):
            # Its RELEASE comes when all have ended, and says why.
            if dest.ask.n_pairs == 1:
                self._hub.alarm(self._hub.now() + CAUSE_S, lambda: self._give_up(dest, error))
        else:
            self._give_up(dest, error)

    def _give_up(self, dest: Dest, error: KvxferError) -> None:
        if dest.state in (OPEN, ENDING):
            dest.error = dest.error or error
            self._read_end(dest)

    def _dest_sent(self, dest: Dest, stream: Stream) -> None:
        """This side sends nothing."""

    def _read_end(self, dest: Dest) -> None:
        self._hub.unlisten(dest.ask.token)
        self._dest_end(dest, None)

    def _dest_stop(self, dest: Dest, error: KvxferError) -> None:
        if dest.state == ASKED:
            self._dest_end(dest, error)
        elif dest.state == OPEN:
            dest.state = ENDING
            dest.error = dest.error or error
            insist(self._hub, dest)

    def _dest_unwanted(self, dest: Dest, error: KvxferError) -> None:
        """RELEASE: it reads no more."""
        if dest.state == ASKED:
            self._dest_end(dest, None)
        else:
            self._read_end(dest)

    def _dest_lost(self, dest: Dest, error: KvxferError, fenced: bool) -> None:
        if dest.state == ASKED:
            self._dest_end(dest, None)
        elif fenced:
            self._read_end(dest)
        else:
            if isinstance(error, NotFound):
                self._dest_replaced(dest)
            if dest.state == OPEN:  # it may still read
                self._dest_stop(dest, error)
                self._fail(error)

    def _dest_tell_end(self, dest: Dest) -> None:
        assert dest.error is not None and dest.peer.geometry is not None
        if dest.peer.geometry.life != dest.ask.life:
            self._dest_replaced(dest)
            return
        dest.peer.send(REVOKE, {"id": self.id, "token": dest.ask.token, "life": dest.ask.life,
                                "from": self._hub.name, "at": self._hub.address,
                                **error_fields(dest.error)})

    def _dest_replaced(self, dest: Dest) -> None:
        """Who reads is not there any more, but nobody has said that its transfers have ended."""
        error = dest.error
        assert error is not None
        self._hub.alarm(max(self._hub.now(), dest.ask.until) + FENCE_MOST_S,
                        lambda: self._give_up(dest, error))

    def daemon_lost(self, error: KvxferError) -> None:
        for dest in self._dests.values():
            if dest.state in (OPEN, ENDING):
                self._hub.unlisten(dest.ask.token)
        super().daemon_lost(error)
