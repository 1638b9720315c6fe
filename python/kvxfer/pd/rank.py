"""One rank of an engine: its memory, its peers, and the transfers it has promised or asked for."""

import threading
import time
from types import TracebackType
from typing import Any, Dict, List, Mapping, Optional, Type, Union

from ..client import Client
from ..errors import Cancelled, Closed, Exists, Internal, Invalid, KvxferError
from ..region import Region
from .dest import Decline
from .expect import Expect
from .fetch import Fetch
from .geometry import Endpoint, Geometry, pack_note, rank_name
from .hold import Hold
from .hub import RankHub
from .offer import Offer
from .peers import region_name
from .pool import Pool
from .rendezvous import Outcome, Wanted

__all__ = ["Rank"]


class Rank:
    """One rank of an engine. One per worker process.

    It has a connection to the node's daemon of its own, and a thread that reads its events. Any
    thread may call anything. Nothing blocks but the constructor, ``serve()``, ``wait()``,
    ``Offer.retract()`` and ``close()``. Calls raise only for wrong arguments (Invalid, Exists) and
    after ``close()`` (Closed), and where the rank's thread has ended by a defect (Internal): what
    goes wrong with peers, daemons and deadlines is told by the :class:`Outcome` of the thing.

    When the daemon is lost everything open ends with DaemonLost; the thread connects and publishes
    again as soon as it is back, and what was begun meanwhile goes on.

    Args:
        engine: the name of the engine instance, of printable ASCII without blanks and "/"; unique
            on its node.
        dp, tp, pp: this rank's place; ``tp_size``, ``pp_size``: the sizes of its instance.
        socket: of the daemon; None: as ``kvxfer.Client``.
        check: words that must be equal on both sides, e.g. {"model": ..., "dtype": ...}: a transfer
            between ranks that differ fails with LayoutMismatch.
        info: free words that other ranks can read (JSON).
        timeout: seconds that a set-up call to the daemon may take.
        patience: seconds for which a peer that is not there (yet) is looked for again and again
            before what needs it fails.

    Raises as ``kvxfer.Client()``.
    """

    def __init__(self, engine: str, *, dp: int = 0, tp: int = 0, tp_size: int = 1, pp: int = 0,
                 pp_size: int = 1, socket: Optional[str] = None,
                 check: Optional[Mapping[str, str]] = None,
                 info: Optional[Mapping[str, Any]] = None, timeout: float = 10.0,
                 patience: float = 5.0) -> None:
        if not engine or not all("!" <= c <= "~" and c != "/" for c in engine) or len(engine) > 80:
            raise Invalid(f"engine {engine!r}: 1 to 80 printable ASCII characters but blank and /")
        if not (0 <= tp < tp_size and 0 <= pp < pp_size and dp >= 0):
            raise Invalid(f"tp {tp} of {tp_size}, pp {pp} of {pp_size}, dp {dp}")
        self._place = {"tp": tp, "tp_size": tp_size, "pp": pp, "pp_size": pp_size}
        self._check, self._info = dict(check or {}), dict(info or {})
        self._timeout = timeout
        name = rank_name(engine, dp, pp, tp)
        self._client = Client(socket, name=name[-64:], timeout=timeout)
        self._hub = RankHub(self._client, name, patience)
        self._outcomes = self._hub.outcomes
        self._life = threading.Lock()  # serve() and close() follow each other
        self._served = False
        self._closed = False

    @property
    def name(self) -> str:
        """Under which this rank's memory is published: "engine/dp0/pp0/tp0"."""
        return self._hub.name

    @property
    def address(self) -> str:
        """"host:port" of this node's daemon for other nodes; "" when it listens to none."""
        return self._hub.address

    def serve(self, pool: Pool, *, access: str = "rw") -> None:
        """Registers the pool's memory, publishes it and starts the thread. Once. Blocks. Before it,
        ``offer``, ``expect``, ``hold`` and ``fetch`` raise Invalid. ``access``: what other ranks
        may do: "w" suffices where this rank only expects, "r" where it only holds.

        Raises Exists (another live rank has the name), Quota, NoMemory, Deadline, DaemonLost."""
        with self._life:
            if self._closed or self._served:
                raise Invalid("serve() was called before, or the rank is closed")
            geometry = Geometry(pool.groups, regions=pool.regions, check=self._check,
                                info=self._info, **self._place)
            self._hub.start(geometry, lambda of: self._publish(pool, access, of))
            self._served = True

    def _publish(self, pool: Pool, access: str, geometry: Geometry) -> List[Region]:
        regions: List[Region] = []
        until = time.monotonic() + self._timeout
        try:
            # The first region last: who finds it, finds the others.
            for i in reversed(range(len(pool.memories))):
                note = pack_note(geometry) if i == 0 else b""
                regions.insert(0, self._register(pool, i, access, note, until))
        except KvxferError:
            for region in regions:
                region.close()
            raise
        return regions

    def _register(self, pool: Pool, i: int, access: str, note: bytes, until: float) -> Region:
        name = region_name(self.name, i)
        while True:
            try:
                return self._client.register(
                    pool.memories[i], layout=pool.layouts[i], access=access, name=name[-64:],
                    publish=name, note=note)
            except Exists:  # a rank that has just died may not have gone yet
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    # ---- WRITE: the prefill side streams, the decode side says where. Either may come first.

    def offer(self, id: str, *, deadline: float, label: str = "") -> Offer:
        """Promises the KV of request ``id`` to one decode engine. All ranks of that engine have to
        ask for it with ``expect`` (those that need nothing from this rank tell it so by
        themselves); it ends well when it is sealed and every one of them has what it asked for.

        Args:
            id: names the transfer on both sides; at most 200 bytes. May be used again when it has
            ended. deadline: seconds from now.
            label: shown by ``kvxferctl transfers``; "": the id.

        Raises Invalid, Exists (an offer of that id has not ended), Closed.
        """
        hub = self._hub
        with hub.lock:
            self._check_ready()
            offer = Offer(hub, hub.sources, id, deadline, label)
            hub.sources.begin(offer)
        return offer

    def expect(self, id: str, source: Endpoint, blocks: Wanted, *, deadline: float, label: str = "",
               tokens: Optional[int] = None, info: bytes = b"") -> Expect:
        """Asks the prefill engine ``source`` for the KV of request ``id``.

        Args:
            blocks: group -> (first logical block wanted, own block ids for it and those after it).
                Groups that are not named, and empty ids: nothing wanted. The ids are copied.
            deadline: seconds from now. After it the blocks are still in use until the other side
                has confirmed that it has stopped, and only then the Outcome comes.
            tokens: where the two sides' blocks hold different numbers of tokens, how many tokens of
                the request (from its beginning) are wanted; None: the blocks to their end.
            info: at most 1024 bytes for ``Offer.infos`` of every source rank.

        Raises Invalid, Exists, Closed.
        """
        hub = self._hub
        with hub.lock:
            self._check_ready()
            expect = Expect(hub, id, source, blocks, deadline, label, tokens, info)
            hub.begin(expect)
        return expect

    # ---- READ: the prefill side holds, the decode side claims and reads.

    def hold(self, id: str, blocks: Wanted, *, deadline: float, label: str = "") -> Hold:
        """Keeps blocks of request ``id`` to be read by one decode engine. Ends well when every rank
        of that engine has read (or said that it needs nothing), and badly at the deadline; a rank
        that is reading then is told to stop first. Arguments as of ``offer`` and ``expect``."""
        hub = self._hub
        with hub.lock:
            self._check_ready()
            hold = Hold(hub, hub.sources, id, blocks, deadline, label)
            hub.sources.begin(hold)
        return hold

    def fetch(self, id: str, source: Endpoint, blocks: Wanted, *, deadline: float, label: str = "",
              tokens: Optional[int] = None, info: bytes = b"") -> Fetch:
        """Reads what the prefill engine ``source`` holds of request ``id`` into own blocks.
        Arguments as of ``expect``. All ranks of this engine have to call it (with {} where nothing
        is needed), or the other side holds its blocks until its deadline."""
        hub = self._hub
        with hub.lock:
            self._check_ready()
            fetch = Fetch(hub, id, source, blocks, deadline, label, tokens, info)
            hub.begin(fetch)
        return fetch

    def decline(self, id: str, source: Endpoint, reason: str = "", *,
                reading: bool = False) -> None:
        """Tells all ranks of ``source`` that this rank will not ask for request ``id``: their offer
        (with ``reading``: their hold) ends at once, with the reason, also one that begins later.
        For requests that are given up before ``expect`` or ``fetch``. No Outcome here. Raises
        Closed."""
        hub = self._hub
        with hub.lock:
            self._check_ready()
            error = Cancelled(f"{id!r} is not wanted" + (f": {reason}" if reason else ""))
            Decline(hub, id, "hold" if reading else "offer", source, error).begin()

    # ---- ends

    def finished(self) -> List[Outcome]:
        """What has ended since the last call, in order. Each thing ends exactly once. Never blocks;
        less than a microsecond when there is nothing."""
        outcomes = self._outcomes
        if not outcomes:
            return []
        out = []
        try:
            while True:
                out.append(outcomes.popleft())
        except IndexError:
            return out

    def wait(self, timeout: Optional[float] = None) -> List[Outcome]:
        """As ``finished()``, but sleeps until there is something, at most ``timeout`` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._hub.lock:
            self._hub.sleep(lambda: bool(self._outcomes), until)
        return self.finished()

    # ---- inspection

    def paths(self) -> Dict[str, str]:
        """Peer rank's name -> the transport that the last bytes to or from it took. The first time,
        and when it changes, it is also logged (logger "kvxfer", level INFO)."""
        with self._hub.lock:
            return dict(self._hub.paths)

    def stats(self) -> Dict[str, Union[int, float]]:
        """Counters since the start: "offers", "expects", "holds", "fetches" that ended well,
        "failed", "failed.<STATUS>", "bytes_out", "bytes_in", "seconds_<role>" (of those that ended
        well, summed up), "transfers", "messages_out", "messages_in"; where they are not 0
        "messages_bad", "messages_dropped", "asks_refused", "asks_again", "asks_late",
        "answers_dropped" (docs/python-pd.md, "Limits"); and what is there now: "open", "peers",
        "running" (transfers)."""
        with self._hub.lock:
            return self._hub.stats()

    def peer_info(self, source: Endpoint, *, pp: int = 0,
                  tp: int = 0) -> Optional[Mapping[str, Any]]:
        """``info`` of another rank; None while it is not known (it is looked for then)."""
        hub = self._hub
        with hub.lock:
            self._check_ready()
            peer = hub.peer(rank_name(source.engine, source.dp, pp, tp), source.address_of(pp, tp))
            return peer.geometry.info if peer.up and peer.geometry is not None else None

    def close(self) -> None:
        """Cancels what is open, tells the other sides, and closes the connection: blocks until
        nothing of this rank's memory is in use any more, at most about twice ``timeout``. Outcomes
        of what was open are in ``finished()`` afterwards (Cancelled). Does nothing the second time.
        Raises Deadline where the daemon did not confirm the end: then the memory may still be
        written to, and nothing is said of what was open."""
        hub = self._hub
        with self._life:
            with hub.lock:
                if self._closed:
                    return
                self._closed = True
            hub.stop(self._timeout)
            try:
                hub.close_regions()
            finally:
                self._client.close()
            hub.end_all(hub.broken or Closed("the rank was closed"))

    def __enter__(self) -> "Rank":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Rank {self.name!r}{', closed' if self._closed else ''}>"

    def _check_ready(self) -> None:
        """The hub's lock is held: what begins now is ended by close()."""
        if self._closed:
            raise Closed(f"the rank {self.name!r} is closed")
        if not self._served:
            raise Invalid("serve() comes first")
        if self._hub.broken is not None:
            raise Internal(self._hub.broken.text)
