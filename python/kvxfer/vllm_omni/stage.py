"""What the connectors of one process share: a client, a registered pool, a thread.

A stage process has several connectors (one for chunks in its scheduler, one for KV caches in its
worker, one per edge in the orchestrator); those of one configuration share a Stage, so that the
node's daemon sees one client and one pool per process. The last one to close closes it.
"""

import atexit
import json
import logging
import os
import threading
import time
import uuid
from typing import Any, ClassVar, Dict, Iterable, Optional, Tuple

import kvxfer

from . import wire
from .config import Config
from .fetch import Fetch, Fetches
from .link import Link, Peer, Route, alias
from .pool import Pool
from .store import Send, Store

__all__ = ["Stage"]

_TAKEN_S = 5.0
_Key = Tuple[int, Optional[str], int, bool, Optional[str]]


class Stage:
    """Made by ``Stage.join``, left by ``leave``. Any thread.

    Attributes:
        name: published name of the pool.
        pool, store, fetches, link: its parts.
    """

    _all: ClassVar[Dict[_Key, "Stage"]] = {}
    _all_lock: ClassVar[Any] = threading.Lock()

    @classmethod
    def join(cls, config: Config, log: logging.Logger) -> "Stage":
        """The stage of this process with that daemon and pool; made when there is none. Blocks
        while the pool is registered. Raises KvxferError."""
        key = (os.getpid(), config.socket, config.pool_bytes, config.hugepages, config.require)
        with cls._all_lock:
            stage = cls._all.get(key)
            if stage is None:
                stage = cls(key, config, log)
                cls._all[key] = stage
            stage._users += 1
            return stage

    def leave(self) -> None:
        """One connector less. The last one closes: blocks until nothing moves any more."""
        with Stage._all_lock:
            self._users -= 1
            if self._users > 0:
                return
            Stage._all.pop(self._key, None)
        self.close()

    def close(self) -> None:
        self.link.close()
        self.fetches.close()
        self.pool.close()

    @property
    def shared(self) -> bool:
        """Whether another connector goes on using it: else leaving fences everything at once."""
        return self._users > 1

    def __init__(self, key: _Key, config: Config, log: logging.Logger) -> None:
        self._key = key
        self._log = log
        self._users = 0
        self._lock = threading.Lock()
        self._numbers: Dict[int, "_Number"] = {}
        self._logged: Dict[Tuple[str, str], str] = {}
        self.name = f"omni/pool/{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.store = Store(log)
        self.pool = Pool(config.pool_bytes, hugepages=config.hugepages)
        self.link = Link(config.socket, f"omni {os.getpid()}", log, self)
        self.fetches = Fetches(self.link, self.pool, self.name, log)
        self.fetches.require = config.require
        try:
            self.region = self.link.client.register(
                self.pool.memory, access="r", name=f"omni pool of pid {os.getpid()}",
                publish=self.name, note=_note(self.name))
        except BaseException:
            self.close()
            raise
        self.fetches.region = self.region
        self.link.start()

    # ---- names

    def publish(self, number: int, who: str) -> None:
        """Lets other processes find this one by an endpoint number. A number may be held by several
        connectors of this process. Blocks; waits some seconds for a predecessor that is being
        cleaned up. Raises Exists: another process has it."""
        with self._lock:
            held = self._numbers.get(number)
            if held is None:
                held = self._numbers[number] = _Number(self._publish(number, who))
            held.users += 1

    def _publish(self, number: int, who: str) -> kvxfer.Region:
        until = time.monotonic() + _TAKEN_S
        while True:
            try:
                return self.link.client.alloc(4096, access="r", name=who[:64],
                                              publish=alias(number), note=_note(self.name))
            except kvxfer.errors.Exists:
                if time.monotonic() > until:
                    raise
            time.sleep(0.05)

    def unpublish(self, number: int) -> None:
        with self._lock:
            held = self._numbers.get(number)
            if held is None:
                return
            held.users -= 1
            if held.users > 0:
                return
            del self._numbers[number]
            try:
                held.region.close()
            except kvxfer.KvxferError as err:
                self._log.debug("unpublish %d: %s", number, err)

    # ---- sending

    def send(self, sends: Iterable[Send]) -> None:
        for peer, message in sends:
            assert isinstance(peer, Peer)
            self.link.send(peer, message)

    # ---- what the link tells (its thread)

    def on_message(self, message: wire.Message) -> None:
        if isinstance(message, wire.Grant):
            self.fetches.on_grant(message)
        elif isinstance(message, wire.Claim):
            self.send(self.store.claim(self.link.peer(message.address, message.name), message))
        elif isinstance(message, wire.Done):
            self.send(self.store.done(message.put, message.claim, message.ok))
        elif isinstance(message, wire.Wait):
            self.fetches.on_wait(message)
        elif isinstance(message, wire.Refuse):
            self.fetches.on_refuse(message)
        else:
            self.send(self.store.abandon(message.claim))

    def on_arrival(self, event: kvxfer.Event) -> None:
        try:
            put, claim = wire.unpack_read(event.payload)
        except wire.WireError as err:
            self._log.error("%s", err)
            return
        peer = self.store.peer_of(put)
        if isinstance(peer, Peer) and event.ok:
            self._took(peer, event.transport, "sends")
            peer.nbytes += event.bytes
        self.send(self.store.arrival(put, claim, event.bytes, event.error))

    def on_read(self, what: Fetch, event: kvxfer.Event) -> None:
        if event.ok and what.peer is not None:
            self._took(what.peer, event.transport, "gets")
        self.fetches.on_read(what, event)

    def _took(self, peer: Peer, transport: str, verb: str) -> None:
        """Says once per peer, and whenever it changes, which way the bytes go."""
        peer.path = transport
        if self._logged.get((peer.name, verb)) != transport:
            self._logged[peer.name, verb] = transport
            self._log.info("kvxfer %s by %s: %s", verb, transport, peer)

    def on_route(self, route: Route) -> None:
        self.fetches.on_route(route)

    def on_peer_up(self, peer: Peer) -> None:
        self.fetches.on_peer_up(peer)

    def on_peer_lost(self, peer: Peer, error: kvxfer.KvxferError, gone: bool) -> None:
        if gone:
            self.send(self.store.peer_lost(peer))
            for verb in ("sends", "gets"):
                self._logged.pop((peer.name, verb), None)
        final = isinstance(error, (kvxfer.errors.ClientLost, kvxfer.errors.RegionLost))
        self.fetches.on_peer_lost(peer, error, final)

    def on_daemon(self, up: bool) -> None:
        if not up:
            self.store.peer_lost(None)
            self.fetches.on_peer_lost(None, kvxfer.errors.DaemonLost("kvxferd is gone"), False)

    def on_tick(self, now: float) -> None:
        self.store.expire(now)
        self.fetches.expire(now)

    # ---- health

    def health(self) -> Dict[str, Any]:
        """Does not ask the daemon: what this process knows."""
        return {
            "daemon": {"connected": self.link.up, "address": self.link.address,
                       "socket": self._key[1] or os.environ.get("KVXFER_SOCKET", "default")},
            "pool": {"name": self.name, "bytes": self.pool.nbytes, "used": self.pool.used,
                     "buffers": self.pool.buffers, **self.store.stats()},
            "fetches": self.fetches.stats(),
            "endpoints": sorted(self._numbers),
            "peers": [self._peer(peer) for peer in self.link.peers()],
        }

    @staticmethod
    def _peer(peer: Peer) -> Dict[str, Any]:
        return {"pool": peer.name, "node": peer.address or "this node", "up": peer.up,
                "path": peer.path, "bytes": peer.nbytes}


class _Number:
    """A published endpoint number: a page of memory that only carries the name."""

    def __init__(self, region: kvxfer.Region) -> None:
        self.region = region
        self.users = 0


def _note(pool: str) -> bytes:
    note: Dict[str, Any] = {"v": wire.VERSION, "pool": pool}
    return json.dumps(note).encode()


def _forget_parents() -> None:
    """In a forked child: the parent's client is not the child's."""
    Stage._all = {}
    Stage._all_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parents)


def _close_all() -> None:
    """Before the interpreter freezes the threads."""
    for stage in list(Stage._all.values()):
        stage.close()


atexit.register(_close_all)
