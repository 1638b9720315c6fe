"""The decode side: blocks that are asked for, streamed by the source (WRITE) or read from it
(READ)."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..errors import Invalid, KvxferError, LayoutMismatch
from ..events import Event
from . import plan
from .geometry import Endpoint, Geometry, rank_name
from .messages import CANCEL, Message, pack
from .peers import Peer
from .plan import Take
from .rendezvous import INFO_MAX, Hub, Rendezvous, Wanted, error_fields, error_of, spans
from .stream import Stream

__all__ = ["Decline", "Sink", "Src"]

#: States of a source rank.
FINDING = "finding"  #: nothing was asked of it
ASKED = "asked"  #: READY or CLAIM was sent
READING = "reading"  #: READ: its blocks are being read
ENDING = "ending"  #: WRITE: CANCEL was sent; READ: the reads are being cancelled
ENDED = "ended"  #: nothing moves between it and this rank any more


class Need(NamedTuple):
    """What is needed of one group of one source rank."""

    src_group: int
    dst_group: int
    start: int  #: in atoms
    end: int
    takes: Tuple[Take, ...]


class Src:
    """One rank of the source engine. Watches its peer, listens to its token."""

    def __init__(self, sink: "Sink", peer: Peer) -> None:
        self.sink, self.peer = sink, peer
        self.state = FINDING
        self.token = 0
        self.needs: Tuple[Need, ...] = ()
        self.n_pairs = 0
        self.life = 0  # of its memory, when it was asked
        self.arrived = 0  # WRITE
        self.error: Optional[KvxferError] = None
        self.stream: Optional[Stream] = None  # READ

    @property
    def ending(self) -> bool:
        return self.state == ENDING

    def tell_end(self) -> None:
        self.sink._src_tell_end(self)

    def on_defect(self, error: KvxferError) -> None:
        self.sink.on_defect(error)

    def on_peer_up(self, peer: Peer) -> None:
        self.sink._src_up(self)

    def on_peer_missing(self, peer: Peer) -> None:
        """It may come yet."""

    def on_peer_lost(self, peer: Peer, error: KvxferError, fenced: bool) -> None:
        if self.state != ENDED:
            self.sink._src_lost(self, error, fenced)

    def on_message(self, message: Message) -> None:
        self.sink._src_message(self, message)

    def on_arrival(self, event: Event) -> None:
        self.sink._src_arrival(self, event)

    def on_stream_end(self, stream: Stream) -> None:
        self.sink._src_read(self, stream)


class Decline:
    """Tells all ranks of a source engine that a request is not wanted. Watches its first rank where
    the number of ranks is not known."""

    def __init__(self, hub: Hub, id: str, role: str, source: Endpoint, error: KvxferError) -> None:
        self._hub, self._source = hub, source
        self._fields = {"id": id, "role": role, "token": 0, "from": hub.name, "at": hub.address,
                        **error_fields(error)}

    def begin(self) -> None:
        source = self._source
        if source.tp_size is not None and source.pp_size is not None:
            self._tell(source.pp_size, source.tp_size)
            return
        peer = source_peer(self._hub, source, 0, 0)
        if peer.up:
            self.on_peer_up(peer)
        else:
            peer.watchers.add(self)

    def on_peer_up(self, peer: Peer) -> None:
        peer.watchers.discard(self)
        self._tell(_of(peer).pp_size, _of(peer).tp_size)

    def on_peer_missing(self, peer: Peer) -> None:
        """It may come yet."""

    def on_peer_lost(self, peer: Peer, error: KvxferError, fenced: bool) -> None:
        """Nobody is there who could wait for it."""

    def on_defect(self, error: KvxferError) -> None:
        """They are not told: they wait until their own deadline."""

    def _tell(self, pp_size: int, tp_size: int) -> None:
        for pp in range(pp_size):
            for tp in range(tp_size):
                source_peer(self._hub, self._source, pp, tp).send(CANCEL, self._fields)


class Sink(Rendezvous):
    """What an expect and a fetch have in common: source ranks, all of which have to deliver."""

    ask_kind = 0
    source_role = ""

    def __init__(self, hub: Hub, id: str, source: Endpoint, blocks: Wanted, deadline: float,
                 label: str, tokens: Optional[int], info: bytes) -> None:
        super().__init__(hub, id, deadline, label)
        if len(info) > INFO_MAX:
            raise Invalid(f"info of {len(info)} bytes, at most {INFO_MAX}")
        self._source = source
        self._spans = spans(hub.geometry, blocks)
        self._tokens = tokens
        self._info = info
        self._srcs: Dict[Tuple[int, int], Src] = {}  # by (pp, tp)
        self._asked = False

    # ---- finding the source ranks

    def begin(self) -> None:
        self.watch_clock()
        source = self._source
        if source.tp_size is not None and source.pp_size is not None:
            self._look_for_all(source.pp_size, source.tp_size)
        else:
            self._look_for(0, 0)
        self._check_found()

    def _look_for_all(self, pp_size: int, tp_size: int) -> None:
        for pp in range(pp_size):
            for tp in range(tp_size):
                if (pp, tp) not in self._srcs:
                    self._look_for(pp, tp)

    def _look_for(self, pp: int, tp: int) -> None:
        peer = source_peer(self._hub, self._source, pp, tp)
        src = self._srcs[pp, tp] = Src(self, peer)
        peer.watchers.add(src)

    def _src_up(self, src: Src) -> None:
        if not self._asked:
            self._check_found()

    def _check_found(self) -> None:
        """All source ranks are there: asks them."""
        if self._asked or self._error is not None or not all(
            s.peer.up for s in self._srcs.values()):
            return
        geometry = self._srcs[0, 0].peer.geometry
        assert geometry is not None
        sizes = (geometry.pp_size, geometry.tp_size)
        given = (self._source.pp_size or sizes[0], self._source.tp_size or sizes[1])
        if given != sizes:
            self._fail(LayoutMismatch(f"{self._source.engine} has pp_size {sizes[0]} and tp_size "
                                      f"{sizes[1]}, not {given[0]} and {given[1]}"))
            return
        if len(self._srcs) < sizes[0] * sizes[1]:
            self._look_for_all(*sizes)
            self._check_found()
            return
        try:
            self._plan()
            asks = [(src, self._message(src)) for src in self._srcs.values()]
        except KvxferError as error:
            self._fail(error)
            return
        self._asked = True  # before the first one: from then on there is something to take back
        for src, message in asks:
            if src.state == FINDING:
                self._ask(src, message)
        self._check_end()

    def _plan(self) -> None:
        """What is needed of whom. Raises LayoutMismatch."""
        here = self._hub.geometry
        srcs = list(self._srcs.values())
        there = [_of(src.peer) for src in srcs]
        needs: List[List[Need]] = [[] for _ in srcs]
        for geometry in there:
            here.check_words(geometry)
        for group, span in self._spans.items():
            for i, takes in enumerate(self._hub.assigned(there, group)):
                if not takes:
                    continue
                a, b = there[i].groups[takes[0].src_group], here.groups[group]
                start, end = plan.wanted_atoms(span.first, len(span.ids), a, b, self._tokens)
                if start < end:
                    needs[i].append(Need(takes[0].src_group, group, start, end, takes))
        for src, of_src in zip(srcs, needs):
            src.needs = tuple(of_src)
            takes = tuple(take for need in of_src for take in need.takes)
            src.life = _of(src.peer).life
            src.n_pairs = len(src.peer.pairs_of(here, takes, False))

    def _message(self, src: Src) -> bytes:
        """What it is asked. Raises Invalid: it is too long."""
        here = self._hub.geometry
        src.token = self._hub.new_token() if src.needs else 0
        wants, ids = self._wants(src)
        fields: Dict[str, Any] = {
            "id": self.id, "token": src.token, "life": here.life, "from": self._hub.name,
            "at": self._hub.address, "place": [here.tp, here.tp_size, here.pp, here.pp_size],
            "left": round(self._until - self._hub.now(), 3), "pairs": src.n_pairs, "wants": wants}
        if self._tokens is not None:
            fields["tokens"] = self._tokens
        if self._info:
            fields["info"] = self._info.decode("latin-1")
        return pack(self.ask_kind, fields, ids)

    def _ask(self, src: Src, message: bytes) -> None:
        if src.needs:
            src.state = ASKED
            self._hub.listen(src.token, src)
        src.peer.send_packed(message)
        if not src.needs:
            self._src_end(src, None)

    def _wants(self, src: Src) -> Tuple[List[Any], List["memoryview"]]:
        """The fields of what is asked of a source rank, and the lists of ids."""
        raise NotImplementedError

    # ---- of the kinds

    def _src_message(self, src: Src, message: Message) -> None:
        raise NotImplementedError

    def _src_arrival(self, src: Src, event: Event) -> None:
        raise NotImplementedError

    def _src_read(self, src: Src, stream: Stream) -> None:
        raise NotImplementedError

    def _src_lost(self, src: Src, error: KvxferError, fenced: bool) -> None:
        raise NotImplementedError

    def _src_tell_end(self, src: Src) -> None:
        """Of an expect: tells it, which is up, to stop writing."""

    def _src_stop(self, src: Src, error: KvxferError) -> None:
        """Brings a source that has been asked and has not ended to its end, here or later."""
        raise NotImplementedError

    # ---- ends

    def _tell(self, src: Src, kind: int, error: Optional[KvxferError]) -> None:
        assert error is not None
        src.peer.send(kind, {"id": self.id, "role": self.source_role, "token": src.token,
                             "life": src.life, "from": self._hub.name, "at": self._hub.address,
                             **error_fields(error)})

    def _src_end(self, src: Src, error: Optional[KvxferError]) -> None:
        """Nothing moves between it and this rank any more."""
        if src.state == ENDED:
            return
        src.state = ENDED
        src.peer.watchers.discard(src)
        if src.token:
            self._hub.unlisten(src.token)
        if error is not None:
            self._fail(error)
        self._check_end()

    def _fail(self, error: KvxferError) -> None:
        if self.ended or self._error is not None:
            return
        self._error = error
        if not self._asked:
            Decline(self._hub, self.id, self.source_role, self._source, error).begin()
        for src in list(self._srcs.values()):
            if src.state == FINDING:
                self._src_end(src, None)
            elif src.state in (ASKED, READING):
                self._src_stop(src, error)
        self._check_end()

    def _check_end(self) -> None:
        if self.ended or any(src.state != ENDED for src in self._srcs.values()):
            return
        if self._asked or self._error is not None:
            self._finish({group: span.ids for group, span in self._spans.items()})

    def undo(self) -> bool:
        """Takes it back, where nobody has been asked. False: it has to end."""
        if self._asked or self._error is not None:
            return False
        self.ended = True
        self._hub.no_alarm(self._alarm)
        for src in self._srcs.values():
            src.state = ENDED
            src.peer.watchers.discard(src)
        return True

    def daemon_lost(self, error: KvxferError) -> None:
        self._error = self._error or error
        for src in self._srcs.values():
            if src.state != ENDED:
                src.state = ENDED
                src.peer.watchers.discard(src)
                if src.token:
                    self._hub.unlisten(src.token)
        self._check_end()

    def _why_late(self) -> str:
        text = super()._why_late()
        open_: Dict[str, List[str]] = {}
        for src in self._srcs.values():
            if src.state != ENDED:
                open_.setdefault(src.state, []).append(src.peer.name)
        said = {FINDING: "not found: ", ASKED: "has not sent (all of) it: ",
                READING: "being read: "}
        return "; ".join([text] + [said.get(state, state + ": ") + ", ".join(names)
                                   for state, names in open_.items()])

    def _refused(self, src: Src, message: Message) -> KvxferError:
        return error_of(message.fields, src.peer.name)


def source_peer(hub: Hub, source: Endpoint, pp: int, tp: int) -> Peer:
    return hub.peer(rank_name(source.engine, source.dp, pp, tp), source.address_of(pp, tp))


def _of(peer: Peer) -> Geometry:
    assert peer.geometry is not None
    return peer.geometry
