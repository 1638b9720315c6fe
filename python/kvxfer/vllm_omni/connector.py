"""KvxferConnector: what vLLM-Omni calls."""

import threading
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from vllm_omni.distributed.omni_connectors.connectors.base import OmniConnectorBase
from vllm_omni.distributed.omni_connectors.utils.logging import get_connector_logger

import kvxfer

from . import wire
from .config import Config, is_here, join_host, split_host
from .fetch import Fetch, FetchError, SizeMismatch, State, read_seconds
from .link import alias
from .pool import ManagedBuffer, PoolFull, as_bytes, copy_in
from .stage import Stage
from .store import Entry

__all__ = ["KvxferConnector"]

#: Under the name whose messages vLLM-Omni shows.
logger = get_connector_logger("vllm_omni.kvxfer")

#: Seconds that close() waits for READs into and out of this connector's buffers.
_CLOSE_S = 5.0

Got = Tuple[Any, int]


class _Source(NamedTuple):
    """Where a get looks: a pool by its name (metadata of our put), or an endpoint number."""

    address: str
    name: str
    is_pool: bool
    expected: int  #: bytes; -1: not told


class KvxferConnector(OmniConnectorBase):
    """Moves objects between stages through the node's kvxferd.

    ``put`` places bytes in the pool of its process and returns; ``get`` in another process (of
    this node or another) claims them, READs them and, with the READ's end, releases them. Any
    number of threads may call put and get.

    What get returns: for a tensor, bytes or ManagedBuffer that was put, a ManagedBuffer (call its
    ``release()``); else the object.

    Both roles can put and get: a stage in the middle of a pipeline is created as "receiver" by the
    package, and puts all the same.

    Raises ValueError for a wrong configuration, kvxfer.KvxferError when the daemon cannot be
    reached or another process has the endpoint number.
    """

    supports_raw_data: bool = True

    def __init__(self, config: Dict[str, Any]) -> None:
        self._closed = True  # until it is built: __del__ closes
        self.config = config
        self._config = conf = Config.of(config)
        self.stage_id = conf.stage_id
        self.role = conf.role
        self.can_put = True
        self.sender_host: Optional[str] = conf.sender_host
        self.sender_zmq_port: Optional[int] = conf.sender_number
        self.pool_size = conf.pool_bytes
        self.pool_device = conf.pool_device
        self._numbers: List[int] = []
        self._lock = threading.Lock()
        self._metrics = {"puts": 0, "gets": 0, "bytes_transferred": 0, "errors": 0, "timeouts": 0}
        if conf.pool_device != "cpu":
            raise ValueError(
                f"memory_pool_device {conf.pool_device!r}: the pool lies in host memory; set "
                "'cpu' (tensors of a GPU are copied into it and out of it)")
        ignored = Config.ignored(config)
        if ignored:
            logger.info("KvxferConnector ignores %s: kvxferd decides that for the whole node",
                        ", ".join(ignored))
        self._stage = Stage.join(conf, logger)
        self._closed = False
        try:
            if conf.role != "receiver" and conf.number is not None:
                self._publish(conf.number)
        except BaseException:
            self.close()
            raise
        logger.info("KvxferConnector ready: role %s, stage %s, %s, pool of %d MiB, daemon %s",
                    self.role, self.stage_id, ", ".join(map(alias, self._numbers)) or "no endpoint",
                    self.pool_size >> 20, self._stage.link.address or "(this node only)")

    # ---- names

    def _publish(self, number: int) -> None:
        conf = self._config
        self._stage.publish(number, f"omni {number} stage {conf.stage_id} {conf.role}")
        self._numbers.append(number)

    def _address(self) -> str:
        """Where other nodes find this node's daemon: "host" where the operator names it, with the
        daemon's port; else what the daemon says."""
        host = self._config.host
        if not host or split_host(host)[1] is not None:
            return host or self._stage.link.address
        return join_host(host, split_host(self._stage.link.address)[1])

    def _source(self, metadata: Optional[Mapping[str, Any]]) -> _Source:
        """A host that is not said, or "auto", is this node. Raises FetchError without a number."""
        metadata = metadata or {}
        size = metadata.get("data_size")
        expected = int(size) if size else -1
        if metadata.get("kvxfer_pool"):
            return _Source(self._daemon(str(metadata.get("kvxfer_daemon") or "")),
                           str(metadata["kvxfer_pool"]), True, expected)
        host = metadata.get("source_host") or self.sender_host or ""
        number = metadata.get("source_port") or self.sender_zmq_port
        if not number:
            raise FetchError("get without metadata needs sender_zmq_port (and sender_host, when it "
                             "is on another node): in the connector's configuration, or by "
                             "update_sender_info()")
        return _Source(self._daemon(str(host)), alias(int(number)), False, expected)

    @staticmethod
    def _daemon(host: str) -> str:
        """The address to find things at; "": this node."""
        name, port = split_host(host)
        if port is None and (not name or is_here(name)):
            return ""
        return host

    def get_connection_info(self) -> Dict[str, Any]:
        """What a receiver needs for ``update_sender_info``."""
        return {"host": self._address(), "zmq_port": self._config.number_for_put(),
                "engine_key": self._stage.name, "can_put": self.can_put}

    def update_sender_info(self, sender_host: str, sender_zmq_port: Optional[int]) -> None:
        """Whom a get without metadata asks from now on."""
        self.sender_host = sender_host
        self.sender_zmq_port = sender_zmq_port

    # ---- put

    def put(self, from_stage: str, to_stage: str, put_key: str,
            data: Any) -> Tuple[bool, int, Optional[Dict[str, Any]]]:
        """Places data for one getter. Blocks only while the pool is full (kvxfer_put_wait_seconds).

        Returns (True, bytes, metadata for get) or (False, 0, None), with the reason logged. A
        tensor of a device is copied to the host first. A ManagedBuffer of this pool is not copied:
        do not change it before it has been fetched; it may be released at once.
        """
        if self._closed:
            raise RuntimeError("Cannot put: KvxferConnector is closed")
        key = self._make_key(put_key, from_stage, to_stage)
        try:
            self._publish_late()
            entry = self._entry(key, put_key, data)
            if entry is None:
                logger.error("put of %s: nothing in it (0 bytes)", key)
                return False, 0, None
            self._stage.send(self._stage.store.add(entry, self._config.ttl))
        except Exception as err:
            self._count("errors")
            logger.error("put of %s: %s", key, err, exc_info=not isinstance(err, PoolFull))
            return False, 0, None
        self._count("puts", entry.size)
        address = self._address()
        return True, entry.size, {
            "source_host": address or "127.0.0.1", "source_port": self._config.number_for_put(),
            "data_size": entry.size, "is_fast_path": entry.fast,
            "kvxfer_pool": self._stage.name, "kvxfer_daemon": address}

    def _publish_late(self) -> None:
        """A receiver that puts: see Config.number_for_put."""
        if self._config.role != "receiver" or self._numbers:
            return
        number = self._config.number_for_put()
        with self._lock:
            if number is not None and not self._numbers:
                self._publish(number)

    def _count(self, what: str, nbytes: int = 0) -> None:
        with self._lock:
            self._metrics[what] += 1
            self._metrics["bytes_transferred"] += nbytes

    def _entry(self, key: str, plain: str, data: Any) -> Optional[Entry]:
        fast = isinstance(data, (ManagedBuffer, torch.Tensor, bytes))
        if not fast:
            data = self.serialize_obj(data)
        pool = self._stage.pool
        if isinstance(data, ManagedBuffer):
            if pool.owns(data):
                return self._entry_of_buffer(key, plain, data) if data.size else None
            data = data.tensor
        size = data.nbytes if isinstance(data, torch.Tensor) else len(data)
        if size == 0:
            return None
        if size <= wire.INLINE_MAX:
            small = as_bytes(data) if isinstance(data, torch.Tensor) else data
            if small is not None:
                return Entry(key, plain, self, size, fast, data=small)
        buffer = pool.alloc(size, self._config.put_wait)
        try:
            copy_in(pool, buffer, data)
        except BaseException:
            buffer.release()
            raise
        return Entry(key, plain, self, size, fast, offset=buffer.offset, free=buffer.release)

    def _entry_of_buffer(self, key: str, plain: str, buffer: ManagedBuffer) -> Entry:
        """Without a copy: the pin keeps its place, whenever the caller releases it."""
        pool = self._stage.pool
        pool.pin(buffer)
        return Entry(key, plain, self, buffer.size, True, offset=buffer.offset,
                     free=lambda: pool.unpin(buffer))

    # ---- get

    def get(self, from_stage: str, to_stage: str, get_key: str,
            metadata: Optional[Dict[str, Any]] = None) -> Optional[Got]:
        """(what was put, its bytes), or None: not there (yet), or failed, with the reason logged.

        With the metadata of ``put`` (data_size) it is there: blocks until it has come, at most 30 s
        and 5 s more per 100 MB. Without, it only looks: blocks until the owner has answered the
        first time (kvxfer_query_wait_seconds); asking again costs no message, and what is put
        meanwhile comes by itself. Raises SizeMismatch, and RuntimeError when closed or nothing says
        whom to ask.
        """
        source = self._check_get(metadata)
        if source.expected >= 0:
            until = time.monotonic() + read_seconds(source.expected)
            return self._get(from_stage, to_stage, get_key, source, until, True)
        until = time.monotonic() + self._config.query_wait
        return self._get(from_stage, to_stage, get_key, source, until, False)

    def get_with_deadline(self, from_stage: str, to_stage: str, get_key: str,
                          metadata: Optional[Dict[str, Any]] = None, *,
                          deadline: float) -> Optional[Got]:
        """As ``get``, but waits for what is not there yet until ``deadline`` (time.monotonic())."""
        source = self._check_get(metadata)
        return self._get(from_stage, to_stage, get_key, source, deadline, True)

    def _check_get(self, metadata: Optional[Dict[str, Any]]) -> _Source:
        if self._closed:
            raise RuntimeError("Cannot get: KvxferConnector is closed")
        return self._source(metadata)

    def _get(self, from_stage: str, to_stage: str, get_key: str, source: _Source, until: float,
             patient: bool) -> Optional[Got]:
        key = self._make_key(get_key, from_stage, to_stage)
        stage = self._stage
        route = stage.link.route(source.address, source.name, source.is_pool)
        fetches = stage.fetches
        fetch = fetches.start(key, route, source.expected, self, self._config.lease)
        state = fetches.wait(fetch, until, patient)
        if state is State.DONE and fetches.take(fetch):
            return self._take(fetch, source)
        if state is State.FAILED and fetches.take(fetch):
            self._failed(key, fetch.error)
        elif patient and source.expected >= 0:
            self._late(key, fetch, state)
        return None

    def _late(self, key: str, fetch: Fetch, state: State) -> None:
        self._count("timeouts")
        logger.error("get of %s: not here in time (%s from %s)", key, state.name.lower(),
                     fetch.route)
        self._stage.fetches.give_up(fetch)

    def _failed(self, key: str, error: Optional[Exception]) -> None:
        self._count("errors")
        logger.error("get of %s: %s", key, error)
        if isinstance(error, SizeMismatch):
            raise error

    def _take(self, fetch: Fetch, source: _Source) -> Got:
        """What was fetched, as the caller wants it. The fetch is the caller's."""
        if source.expected not in (-1, fetch.size):
            if fetch.buffer is not None:
                fetch.buffer.release()
            self._failed(fetch.key, SizeMismatch(f"{fetch.key} has {fetch.size} bytes at the "
                                                 f"owner, the metadata said {source.expected}"))
        self._count("gets", fetch.size)
        if fetch.fast:
            return self._buffer(fetch), fetch.size
        if fetch.data is not None:
            return self.deserialize_obj(fetch.data), fetch.size
        assert fetch.buffer is not None
        try:  # the serializer copies what it takes from the pool
            return self.deserialize_obj(self._stage.pool.view(fetch.buffer)), fetch.size
        finally:
            fetch.buffer.release()

    def _buffer(self, fetch: Fetch) -> ManagedBuffer:
        if fetch.buffer is not None:
            return fetch.buffer
        assert fetch.data is not None
        pool = self._stage.pool
        buffer = pool.alloc(fetch.size, self._config.put_wait)
        copy_in(pool, buffer, fetch.data)
        return buffer

    def abandon_get(self, get_key: str) -> None:
        """Forgets gets of that key that found nothing yet, between whichever stages. What is under
        way goes on."""
        self._stage.fetches.abandon(get_key, self)

    # ---- the rest

    def cleanup(self, request_id: str, from_stage: Optional[str] = None,
                to_stage: Optional[str] = None) -> None:
        """Forgets what was put under a key: as given to ``put`` (all stages), or with its stages.
        A READ of it that is under way ends first. Does not block."""
        if (from_stage is None) != (to_stage is None):
            raise ValueError("cleanup() needs both from_stage and to_stage, or neither")
        if self._closed:
            return
        if from_stage is not None and to_stage is not None:
            request_id = self._make_key(request_id, from_stage, to_stage)
        self._stage.store.remove(request_id, self)

    def health(self) -> Dict[str, Any]:
        """What this process knows, without asking anybody: "status" is "healthy" while the daemon
        is connected. "peers" says, for each other process, by which path bytes went last."""
        if self._closed:
            return {"status": "unhealthy", "error": "Connector is closed"}
        known = self._stage.health()
        status: Dict[str, Any] = {"status": "healthy"}
        if not known["daemon"]["connected"]:
            status = {"status": "unhealthy", "error": "kvxferd is gone; waiting for it to be back"}
        return {**status, "host": self._address(), "role": self.role, "stage_id": self.stage_id,
                "pool_device": self.pool_device, "pool_size": self.pool_size, **known,
                **self._metrics}

    def close(self) -> None:
        """Forgets what was put and not fetched, and ends what is under way: returns when nothing
        reads or writes buffers of this connector any more. May be called again."""
        if getattr(self, "_closed", True):
            return
        self._closed = True
        stage = self._stage
        stage.fetches.give_up_owner(self)
        stage.store.remove_owner(self)
        until = time.monotonic() + _CLOSE_S
        while stage.shared and time.monotonic() < until:
            if not stage.fetches.under_way(self) and not stage.store.pinned(self):
                break
            time.sleep(0.005)
        for number in self._numbers:
            stage.unpublish(number)
        self._numbers.clear()
        stage.leave()
        logger.info("KvxferConnector closed")
