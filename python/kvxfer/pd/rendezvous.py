"""What the four kinds of rendezvous have in common, and what they need of their rank."""

from typing import (TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional,
                    Protocol, Sequence, Set, Tuple)

from ..errors import Cancelled, Deadline, Invalid, KvxferError, Status, from_status
from ..events import Op
from ..wait import Wait
from .geometry import Geometry
from .messages import copy_ids
from .plan import Span, Take

if TYPE_CHECKING:
    import threading

    from .peers import Failing, Peer
    from .stream import Pair, Stream, StreamOwner

__all__ = ["Alarm", "Hub", "Insisting", "Outcome", "Rendezvous", "Wanted", "error_fields",
           "error_of", "insist", "spans"]

Alarm = List[Any]  #: when, number, call; what Hub.alarm() gives
Ids = Any  #: block ids: one-dimensional numpy array, torch CPU tensor or sequence of int
Wanted = Mapping[int, Tuple[int, Ids]]  #: group index -> (first logical block, block ids)

ID_MAX = 200
NAME_MAX, ADDRESS_MAX = 200, 200  #: of other ranks, in messages
INFO_MAX = 1024
#: How long the message that says why something was cancelled may come behind the transfer's end.
CAUSE_S = 1.0
#: What was told and is not confirmed is told again: first after so long, at last every minute.
AGAIN_S = 2.0
AGAIN_MOST_S = 60.0
#: The longest fence bound that a daemon can be configured to have, and what messages take. A rank
#: that is gone without our daemon having said so moves nothing after the deadline of its transfers
#: and this.
FENCE_MOST_S = 65.0


class Outcome(NamedTuple):
    """How something ended. When it is given out, no byte of it lands or is read any more."""

    id: str
    role: str  #: "offer", "expect", "hold" or "fetch"
    ok: bool
    error: Optional[KvxferError]  #: None when ok
    nbytes: int  #: moved to or from this rank
    seconds: float  #: from the call (offer, expect, ...) to the end
    transports: Tuple[str, ...]  #: "copy", "fabric", "verbs", ...; () when nothing was moved
    #: expect and fetch that failed: group -> own block ids whose content is undefined now.
    blocks: Mapping[int, Sequence[int]]


class Hub(Protocol):
    """The rank, as its rendezvous use it. ``lock`` held for all of it."""

    lock: "threading.RLock"
    name: str
    address: str
    geometry: Geometry

    def now(self) -> float: ...

    def alarm(self, when: float, call: Any) -> Alarm:
        """Calls it at that time or soon after."""

    def no_alarm(self, alarm: Alarm) -> None:
        """Takes it back, if it has not rung."""

    def peer(self, name: str, address: str) -> "Peer":
        """Looked for from now on, where it is not known."""

    def stream(self, owner: "StreamOwner", peer: "Peer", op: Op, token: int,
               pairs: Sequence["Pair"], label: str, until: float) -> "Stream": ...

    def assigned(self, there: Sequence[Geometry], group: int) -> "List[Tuple[Take, ...]]":
        """``plan.assign`` for this rank, kept for the next request."""

    def new_token(self) -> int:
        """48 bits that nobody can guess."""

    def listen(self, token: int, to: Any) -> bool:
        """``to.on_message(message)`` and ``to.on_arrival(event)`` for this token; False: it is
        taken."""

    def unlisten(self, token: int) -> None: ...

    def may_meet(self, name: str, address: str) -> bool:
        """Whether it is known, or one more may be: asked where another rank's word would make this
        one look for it."""

    def guard(self, whom: "Optional[Failing]", call: Callable[..., Any], *args: Any) -> None:
        """Calls it; what it raises is logged, and told to ``whom.on_defect``."""

    def count(self, what: str) -> None: ...

    def daemon_wait(self, wait: Wait) -> Optional[Wait]:
        """The same as the daemon is to be told of it; None: it cannot wait for that."""

    def poll_soon(self, thing: Any) -> None:
        """``thing.on_poll()`` is called until it returns False."""

    def sleep(self, over: Callable[[], bool], until: Optional[float]) -> bool:
        """Gives up the lock until over() is true or the time (time.monotonic()) has come:
        over()."""

    def finish(self, thing: "Rendezvous", outcome: Outcome) -> None: ...


class Insisting(Protocol):
    """The other rank of something that is to end: a Watcher of its peer."""

    peer: "Peer"

    @property
    def ending(self) -> bool:
        """It has not confirmed that nothing moves any more."""

    def tell_end(self) -> None:
        """Tells it to stop. Its peer is up."""

    def on_peer_up(self, peer: "Peer") -> None: ...

    def on_peer_missing(self, peer: "Peer") -> None: ...

    def on_peer_lost(self, peer: "Peer", error: KvxferError, fenced: bool) -> None: ...

    def on_defect(self, error: KvxferError) -> None: ...


def insist(hub: Hub, one: Insisting, pause: float = AGAIN_S) -> None:
    """Tells it to stop, again and again until it has confirmed that: what was told may be lost with
    the connection, and until then it may still move something. Where it is being looked for, its
    ``on_peer_up`` tells."""
    if not one.ending:
        return
    if one.peer.lost:
        one.peer = hub.peer(one.peer.name, one.peer.address)
        one.peer.watchers.add(one)
    if one.peer.up:
        one.tell_end()
    hub.alarm(hub.now() + pause, lambda: insist(hub, one, min(2 * pause, AGAIN_MOST_S)))


class Rendezvous:
    """One thing that ends exactly once.

    Attributes:
        id: of the request.
        ended: whether its Outcome is there.
    """

    role = ""

    def __init__(self, hub: Hub, id: str, deadline: float, label: str) -> None:
        if not (isinstance(id, str) and 0 < len(id.encode()) <= ID_MAX):
            raise Invalid(f"id {id!r}: must be a string of 1 to {ID_MAX} bytes")
        if not 0 < deadline <= 4e6:
            raise Invalid(f"deadline: {deadline} seconds from now, must be > 0 and at most 4000000")
        self.id = id
        self.ended = False
        self._hub = hub
        self._label = _short(label or id)
        self._start = hub.now()
        self._until = self._start + deadline
        self._error: Optional[KvxferError] = None
        self._nbytes = 0
        self._transports: Set[str] = set()
        self._alarm: Alarm = [0.0, 0, None]  # not set

    def watch_clock(self) -> None:
        """From now on its deadline counts: it is in the rank's tables."""
        self._hub.no_alarm(self._alarm)
        self._alarm = self._hub.alarm(self._until, self._on_deadline)

    def cancel(self, reason: str = "") -> None:
        """Ends it early. Its Outcome (Cancelled) comes when its blocks are not in use any more:
        after what is under way has been stopped, and the other side has confirmed that. The other
        side is told, with the reason. Never blocks. Does nothing when it has ended."""
        text = f"the {self.role} of {self.id!r} was cancelled" + (f": {reason}" if reason else "")
        with self._hub.lock:
            self._fail(Cancelled(text))

    def _on_deadline(self) -> None:
        if not self.ended and self._hub.now() >= self._until:
            self._fail(Deadline(self._why_late()))

    def _why_late(self) -> str:
        seconds = self._until - self._start
        return f"the {self.role} of {self.id!r} was not over after {seconds:.3g} s"

    def _fail(self, error: KvxferError) -> None:
        """The first cause stays. Ends everything that is under way."""
        raise NotImplementedError

    def on_defect(self, error: KvxferError) -> None:
        """Something of it has raised what it must not."""
        self._fail(error)

    def daemon_lost(self, error: KvxferError) -> None:
        """Everything has ended with the daemon."""
        raise NotImplementedError

    def _count(self, nbytes: int, transports: Set[str]) -> None:
        self._nbytes += nbytes
        self._transports |= transports

    def _finish(self, blocks: Optional[Mapping[int, Sequence[int]]] = None) -> None:
        assert not self.ended
        self.ended = True
        self._hub.no_alarm(self._alarm)
        self._hub.finish(self, Outcome(
            self.id, self.role, self._error is None, self._error, self._nbytes,
            self._hub.now() - self._start, tuple(sorted(self._transports)),
            blocks if blocks and self._error is not None else {}))

    def __repr__(self) -> str:
        state = "ended" if self.ended else "ending" if self._error else "open"
        return f"<{type(self).__name__} {self.id!r}, {state}>"


def _short(label: str) -> str:
    """At most 64 bytes of printable ASCII, as the daemon takes labels."""
    text = "".join(c if " " < c < "\x7f" else "_" for c in label)
    return text if len(text) <= 64 else text[:30] + "..." + text[-31:]


def spans(geometry: Geometry, blocks: Wanted) -> Dict[int, Span]:
    """Block ids of groups, copied; groups without any are left out. Raises Invalid."""
    out = {}
    for group, (first, ids) in blocks.items():
        if not 0 <= group < len(geometry.groups):
            raise Invalid(f"group {group}: there are {len(geometry.groups)}")
        if first < 0:
            raise Invalid(f"group {group}: first block {first}")
        if ids is not None and len(ids):
            out[int(group)] = Span(int(first), copy_ids(ids, f"block ids of group {group}"))
    return out


def error_fields(error: KvxferError) -> Dict[str, Any]:
    """A failure, as messages carry it."""
    status = int(error.status if error.status is not None else Status.INTERNAL)
    return {"status": status, "text": error.text[:1000]}


def error_of(fields: Mapping[str, Any], who: str) -> KvxferError:
    """The failure that another rank told; never that there was none."""
    status = fields.get("status")
    if not isinstance(status, int) or not 0 < status < 1 << 16:
        status = int(Status.INTERNAL)
    return from_status(status, f"{who}: {str(fields.get('text', ''))[:2000]}", 1, 0)
