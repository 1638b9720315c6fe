import asyncio
import threading

import pytest

import kvxfer
from conftest import Pair
from kvxfer import Blocks, EventType, aio, errors


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_await_one_and_many(pair):
    async def main():
        event = await pair.write(Blocks([0], [1]), tag=9)
        assert event.ok and event.tag == 9
        many = [pair.write(Blocks([i % 32], [i % 32]), tag=i) for i in range(200)]
        assert [e.tag for e in await asyncio.gather(*many)] == list(range(200))
        assert (await many[0]).tag == 0, "again, when it is done"
        assert pair.prefill._readers == {}

    run(main())
    assert pair.prefill.poll() == ()


def test_await_raises(pair):
    async def main():
        with pytest.raises(errors.OutOfRange):
            await pair.write(Blocks([99], [0]))

    run(main())


def test_cancelled_await_leaves_the_transfer(pair):
    async def main():
        transfer = pair.write(streaming=True)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(transfer, 0.05)
        assert not transfer.done
        transfer.append(Blocks([1], [1]))
        transfer.seal()
        assert (await transfer).ok

    run(main())


def test_events(pair):
    async def receive():
        got = []
        async for event in aio.events(pair.decode):
            got.append((event.type, event.tag))
            if event.type is EventType.MESSAGE:
                return got

    async def main():
        receiver = asyncio.ensure_future(receive())
        for tag in range(5):
            await pair.write(Blocks([1], [1]), tag=tag)
        pair.to_decode.send(b"end")
        got = await receiver
        assert got == [(EventType.ARRIVAL, tag) for tag in range(5)] + [(EventType.MESSAGE, 0)]

    run(main())


def test_another_thread_reads_the_event(pair):
    """The awaiting loop hears of an end that a polling thread has read."""
    stop = threading.Event()

    def poll():
        while not stop.is_set():
            pair.prefill.poll()

    thread = threading.Thread(target=poll)
    thread.start()

    async def main():
        for i in range(20):
            assert (await pair.write(Blocks([1], [1]), tag=i)).tag == i

    try:
        run(main())
    finally:
        stop.set()
        thread.join()


def test_loop_and_set_up_calls_of_another_thread(pair):
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(10):
            transfer = pair.write(Blocks([1], [1]))
            region = loop.run_in_executor(None, pair.prefill.alloc, 1 << 20)
            assert (await transfer).ok
            (await region).close()

    run(main())


def test_close_under_await(pair):
    async def main():
        awaiting = asyncio.ensure_future(aio.finished(pair.write(streaming=True)))
        await asyncio.sleep(0.05)
        pair.prefill.close()
        with pytest.raises(errors.Closed):
            await awaiting

    run(main())


def test_daemon_lost_under_await(node):
    pair = Pair(node)

    async def main():
        transfer = pair.write(streaming=True)
        awaiting = asyncio.ensure_future(aio.finished(transfer))
        await asyncio.sleep(0.05)
        node.kill()
        with pytest.raises(errors.DaemonLost):
            await awaiting
        node.start()
        while not pair.prefill.wait(0.01):
            pass
        pair.decode.wait(30)
        pair.prefill.reconnect()
        pair.decode.reconnect()
        remote = pair.prefill.open_import(pair.regions[1].export())
        assert (await pair.prefill.write(pair.regions[0], remote, Blocks([1], [1]))).ok

    run(main())
    pair.close()


def test_two_clients_in_one_loop(pair):
    async def main():
        write, read = await asyncio.gather(pair.write(Blocks([1], [1])),
                                           pair.read(Blocks([2], [2])))
        assert write.op is kvxfer.Op.WRITE and read.op is kvxfer.Op.READ

    run(main())
