"""Objects that die in any order, and nothing that is left behind."""

import gc
import os
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest

import kvxfer
from conftest import Pair, anonymous_bytes
from kvxfer import Blocks, errors


def test_views_outlive_region_and_client(shared_node):
    client = shared_node.client()
    region = client.alloc(1 << 20)
    array = region.numpy("float32", (512, 512))
    array[...] = 3
    region.close()
    client.close()
    memory = weakref.ref(region.memory)
    del region, client
    gc.collect()
    assert array.sum() == 3 * 512 * 512
    array[...] = 4
    assert memory() is None, "the array holds the mapping, not the object"


def test_everything_closed_raises_closed(pair):
    transfer = pair.write(streaming=True)
    pair.prefill.close()
    pair.prefill.close()
    for call in (transfer.wait, transfer.result, pair.prefill.poll, pair.prefill.wait,
                 pair.regions[0].export, lambda: pair.to_decode.nbytes, transfer.seal,
                 lambda: pair.to_decode.send(b"x"), lambda: pair.prefill.limits,
                 lambda: pair.prefill.query("status"), pair.prefill.reconnect,
                 lambda: pair.prefill.alloc(4096), lambda: pair.write(Blocks([0], [0])),
                 lambda: pair.prefill.open_import(b"x")):
        with pytest.raises(errors.Closed):
            call()
    assert transfer.cancel() is False
    pair.regions[0].close()
    pair.to_decode.close()


def test_closed_region_and_import(pair):
    with pair.prefill.alloc(4096) as region:
        pass
    assert region.closed
    with pytest.raises(errors.Closed):
        pair.prefill.write(region, pair.to_decode, Blocks([0], [0], planes=0))
    with pair.to_decode:
        pass
    with pytest.raises(errors.Closed):
        pair.write(Blocks([0], [0]))


def test_client_that_is_dropped_warns_and_closes(shared_node):
    client = shared_node.client()
    client.alloc(4096)
    with pytest.warns(ResourceWarning):
        del client
        gc.collect()


def test_memory_views(pair):
    region = pair.regions[0]
    assert region.numpy("int16").shape == (region.nbytes // 2,)
    for shape, offset in (((1 << 30,), 0), ((1,), region.nbytes), ((1,), -1), ((-1,), 0), (0, 0)):
        with pytest.raises(errors.Invalid):
            region.numpy("uint8", shape, offset)
    assert region.offset_of(region.numpy("uint8", (8,), 123)) == 123
    assert region.offset_of(region.numpy("uint8", (8,), 123)[::-1]) == 130
    with pytest.raises(errors.Invalid):
        region.offset_of(np.zeros(8))
    assert bytes(region.memory.buffer[:4]) == b"\0" * 4


def test_memory_of_an_fd(shared_node):
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.truncate(fd, 16384)
    with shared_node.client() as client:
        memory = kvxfer.Memory.from_fd(fd, 8192, offset=4096)
        os.close(fd)
        region = client.register(memory, access="rw")
        remote = client.open_import(region.export())
        region.numpy()[:3] = [1, 2, 3]
        client.write(region, remote, kvxfer.Ops([0], [4096], 3)).wait(30)
        assert list(memory.numpy("uint8", 3, 4096)) == [1, 2, 3]


def fds():
    """What this process has open, by kind: a socket is as good as another one."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
        except FileNotFoundError:  # the directory that was listed
            pass
    return sorted(links)


def test_ten_thousand_transfers_leave_nothing(small_pages, pair):
    def run(n):
        for i in range(n // 20):
            batch = [pair.write(Blocks([i % 32], [i % 32]), payload=b"x" * 100) for _ in range(20)]
            for transfer in batch:
                transfer.wait(30)
            pair.decode.poll()

    run(2000)
    assert not pair.prefill.wait(0.001)  # the first thread that sleeps opens a pipe, for good
    gc.collect()
    before = anonymous_bytes("self"), fds(), len(gc.get_objects())
    run(10000)
    gc.collect()
    assert fds() == before[1]
    assert anonymous_bytes("self") - before[0] < 1 << 20
    assert len(gc.get_objects()) - before[2] < 200
    assert pair.prefill._transfers == {} and pair.prefill._backlog == {}


def test_clients_and_regions_leave_nothing(shared_node):
    def run():
        pair = Pair(shared_node)
        pair.write(Blocks([1], [1])).wait(30)
        pair.close()

    run()
    gc.collect()
    before = fds()
    for _ in range(10):
        run()
    gc.collect()
    assert fds() == before


def test_exit_without_closing(shared_node):
    """The interpreter ends in good order with everything still open."""
    program = textwrap.dedent("""
        import sys, threading, kvxfer
        client = kvxfer.Client(sys.argv[1])
        region = client.alloc(4096, access="rw")
        remote = client.open_import(region.export())
        open_ = client.write(region, remote, streaming=True)
        threading.Thread(target=open_.wait, daemon=True).start()
        """)
    done = subprocess.run([sys.executable, "-c", program, shared_node.socket], timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
