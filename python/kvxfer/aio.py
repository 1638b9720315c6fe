"""asyncio: ``await transfer``, and ``events(client)``. A client's fd is watched by the running loop
as long as something of it is awaited there."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, AsyncIterator, Callable, Iterator, Optional

from . import errors

if TYPE_CHECKING:
    from .client import Client
    from .events import Event
    from .transfer import Transfer

__all__ = ["events", "finished"]

_BUSY_S = 0.001


class Reader:
    """Watches one client's fd in one loop, for ``users`` awaits. The loop's thread."""

    def __init__(self, client: "Client", loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self.loop = loop
        self.users = 0
        self.on = False
        self.later: Optional[asyncio.TimerHandle] = None

    def start(self) -> None:
        self.later = None
        self.on = True
        self.loop.add_reader(self.client.fileno(), self.on_readable)

    def stop(self) -> None:
        self.on = False
        if self.later is not None:
            self.later.cancel()
            self.later = None
        if not self.loop.is_closed():
            self.loop.remove_reader(self.client.fileno())

    def on_readable(self) -> None:
        """Another thread may be in a call of the client: then later, instead of blocking the
        loop or spinning."""
        lock = self.client._lock
        if not lock.acquire(False):
            self.stop()
            self.later = self.loop.call_later(_BUSY_S, self.start)
            self.on = True
            return
        try:
            self.client._pump()
        except errors.KvxferError:  # told to whoever awaits by what it awaits
            self.stop()
            self.client._told()
        finally:
            lock.release()


@contextlib.contextmanager
def _watching(client: "Client") -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.get_running_loop()
    reader = client._readers.get(loop)
    if reader is None:
        reader = client._readers[loop] = Reader(client, loop)
    if not reader.on:
        reader.start()
    reader.users += 1
    try:
        yield loop
    finally:
        reader.users -= 1
        if reader.users == 0 and client._readers.pop(loop, None) is not None:
            reader.stop()


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _setter(loop: asyncio.AbstractEventLoop, future: "asyncio.Future[None]") -> Callable[[], None]:
    """Wakes the future from any thread; a loop that has ended needs no waking."""

    def call() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set, future)

    return call


async def finished(transfer: "Transfer") -> "Event":
    """What ``await transfer`` does: its terminal event, or the exception of its status. Cancelling
    the await does not cancel the transfer: its blocks stay in use until it is done."""
    client = transfer.client
    if not transfer.done:
        with _watching(client) as loop:
            future: "asyncio.Future[None]" = loop.create_future()
            with client._lock:
                if transfer.done:
                    _set(future)
                else:
                    transfer._on_done.append(_setter(loop, future))
            await future
    return transfer.result()


async def events(client: "Client") -> AsyncIterator["Event"]:
    """The events of a client as they come, without end: ``async for event in events(client)``.
    Only one such loop per client. Raises DaemonLost after the loss has been told, and Closed."""
    with _watching(client) as loop:
        while True:
            future: "asyncio.Future[None]" = loop.create_future()
            told = _setter(loop, future)
            client._listeners.append(told)
            try:
                got = client.poll()
                if not got:
                    await future
            finally:
                client._listeners.remove(told)
            for event in got:
                yield event
