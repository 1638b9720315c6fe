import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kvxfer
from conftest import Node, Pair
from kvxfer import Blocks, EventType, Op, Ops, Slice


def fill(array, seed=1):
    array[...] = np.random.default_rng(seed).integers(0, 256, array.shape, dtype=np.uint8)


def test_write_moves_blocks_and_both_sides_hear(pair):
    fill(pair.src)
    transfer = pair.write(Blocks(np.array([1, 5], np.int32), np.array([7, 2], np.int32)), tag=42,
                          payload=b"ready")
    event = transfer.wait(30)
    assert (event.type, event.transfer, event.tag) == (EventType.TERMINAL, transfer, 42)
    assert event.ok and event.op is Op.WRITE and event.transport == "copy"
    assert event.bytes == 2 * 4 * 4096
    assert 0 < event.submit_ns <= event.first_ns <= event.last_ns <= event.end_ns
    (arrival,) = pair.decode.wait(30)
    assert (arrival.type, arrival.tag, arrival.payload) == (EventType.ARRIVAL, 42, b"ready")
    assert arrival.region is pair.regions[1] and arrival.ok
    assert np.array_equal(pair.dst[:, [7, 2]], pair.src[:, [1, 5]])
    assert not pair.dst[:, 0].any()


def test_terminal_event_is_given_once(pair):
    first = pair.write(Blocks([0], [0]), tag=1)
    second = pair.write(Blocks([1], [1]), tag=2)
    second.wait(30)
    assert [e.tag for e in pair.prefill.wait(30)] == [1]
    assert first.done and first.result().ok
    assert pair.prefill.poll() == ()


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64, np.int16, np.uint8])
@pytest.mark.parametrize("step", [1, 3, -1])
def test_ids_of_every_type_and_stride(pair, dtype, step):
    fill(pair.src)
    local = np.arange(30, dtype=dtype)[::step][:10]
    remote = np.arange(30, dtype=dtype)[::-1][:10]
    pair.write(Blocks(local, remote)).wait(30)
    assert np.array_equal(pair.dst[:, remote], pair.src[:, local])


@pytest.mark.parametrize("bad", [np.array([-1], np.int64), np.array([2**32], np.int64),
                                 np.array([-1, 0], np.int16), np.array([0.5]), np.zeros((1, 1), int), [-1],
                                 [2**32], ["x"], np.array([1], ">i4"), [1, 2], []])
def test_bad_ids_are_refused_here(pair, bad):
    with pytest.raises(kvxfer.errors.Invalid):
        pair.write(Blocks(bad, [0] if len(bad) else []))


def test_negative_int32_id_is_out_of_range(pair):
    with pytest.raises(kvxfer.errors.OutOfRange) as info:
        pair.write(Blocks(np.array([-1], np.int32), np.array([0], np.int32))).wait(30)
    assert info.value.scope is not None and info.value.text


def test_planes_of_one_layer(pair):
    fill(pair.src)
    pair.write(Blocks([3], [4], planes=1, remote_plane=2)).wait(30)
    assert np.array_equal(pair.dst[2, 4], pair.src[1, 3])
    assert not pair.dst[[0, 1, 3]].any()


def test_read_pulls(pair):
    fill(pair.src)
    event = pair.read(Blocks([9], [8], planes=range(1, 3))).wait(30)
    assert event.op is Op.READ
    assert np.array_equal(pair.dst[1:3, 9], pair.src[1:3, 8])


def test_slice_of_heads(pair):
    fill(pair.src)
    piece = Slice.heads(block_tokens=16, head_bytes=32, n_heads=2, local_heads=8, local_first=4,
                        remote_heads=8, remote_first=0)
    pair.write(Blocks([1], [2], planes=0, slice=piece)).wait(30)
    tokens = pair.src[0, 1].reshape(16, 8, 32)
    got = pair.dst[0, 2].reshape(16, 8, 32)
    assert np.array_equal(got[:, 0:2], tokens[:, 4:6]) and not got[:, 2:].any()
    piece = Slice.heads(block_tokens=16, head_bytes=32, n_heads=2, local_heads=8, local_first=4,
                        remote_heads=8, heads_first=True)
    assert piece == Slice(4 * 512, 0, 1024)
    with pytest.raises(kvxfer.errors.Invalid):
        Slice.heads(block_tokens=1, head_bytes=1, n_heads=2, local_heads=2, local_first=1,
                    remote_heads=2)


def test_explicit_ops(pair):
    fill(pair.src)
    pair.write(Ops(np.array([0, 5000]), np.array([100, 9000], np.uint64),
                   np.array([10, 20], np.int32))).wait(30)
    pair.write(Ops([64], [70000], 5)).wait(30)
    src, dst = pair.src.reshape(-1), pair.dst.reshape(-1)
    assert np.array_equal(dst[100:110], src[:10]) and np.array_equal(dst[9000:9020], src[5000:5020])
    assert np.array_equal(dst[70000:70005], src[64:69])
    with pytest.raises(kvxfer.errors.Invalid):
        pair.write(Ops([0, 1], [0], 5))


def test_streaming_layer_by_layer(pair):
    fill(pair.src)
    with pair.write(streaming=True, tag=5, payload=b"early") as transfer:
        for layer in range(4):
            transfer.append(Blocks([2], [3], planes=layer))
        transfer.seal(b"late")
    assert transfer.wait(30).ok
    assert pair.decode.wait(30)[0].payload == b"late"
    assert np.array_equal(pair.dst[:, 3], pair.src[:, 2])
    with pytest.raises(kvxfer.errors.NotFound):
        transfer.append(Blocks([2], [3]))
    assert transfer.cancel() is False


def test_leaving_a_streaming_transfer_seals_or_cancels(pair):
    with pair.write(streaming=True) as sealed:
        sealed.append(Blocks([2], [3]))
    assert sealed.wait(30).ok
    with pytest.raises(ZeroDivisionError):
        with pair.write(streaming=True) as cancelled:
            raise ZeroDivisionError
    with pytest.raises(kvxfer.errors.Cancelled):
        cancelled.wait(30)


def test_message(pair):
    pair.to_decode.send(b"hello")
    (event,) = pair.decode.wait(30)
    assert (event.type, event.payload) == (EventType.MESSAGE, b"hello")
    assert event.region is pair.regions[1]


def test_import_tells_the_remote_layout(pair):
    assert pair.to_decode.planes == pair.layout.planes
    assert pair.to_decode.nbytes == pair.regions[1].nbytes
    assert pair.to_decode.transport == "copy"


def test_limits_and_query(pair):
    assert pair.prefill.limits.max_payload_bytes == kvxfer.PAYLOAD_MAX
    assert pair.prefill.query("status")["clients"] >= 2


def test_two_daemons():
    nodes = Node(), Node()
    try:
        pair = Pair(nodes[0], decode_node=nodes[1])
        fill(pair.src)
        event = pair.write(Blocks([1, 2], [3, 4])).wait(60)
        assert event.transport == "fabric"
        assert np.array_equal(pair.dst[:, [3, 4]], pair.src[:, [1, 2]])
        pair.read(Blocks([5], [6])).wait(60)
        assert np.array_equal(pair.dst[:, 5], pair.src[:, 6])
        pair.close()
    finally:
        for node in nodes:
            node.stop()


@st.composite
def lists(draw, n_planes=4, n_blocks=32):
    n = draw(st.integers(1, n_blocks))
    order = st.permutations(range(n_blocks))
    first, last = sorted((draw(st.integers(0, n_planes)), draw(st.integers(0, n_planes))))
    planes = range(first, max(last, first + 1)) if first < n_planes else range(0, n_planes)
    return draw(order)[:n], draw(order)[:n], planes


@settings(max_examples=60, deadline=None,
          database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists(), st.sampled_from([Op.READ, Op.WRITE]), st.sampled_from(["i4", "i8", "u4", list]),
       st.integers(0, 2**32))
def test_random_transfers_move_what_numpy_moves(pair, blocks, op, dtype, seed):
    """Destination equals a numpy copy of the same index lists, everything else is untouched."""
    here, there, planes = blocks
    make = list if dtype is list else lambda ids: np.array(ids, dtype)
    fill(pair.src, seed)
    fill(pair.dst, seed + 1)
    source = pair.src.copy()
    want = pair.dst.copy()
    rows = slice(planes.start, planes.stop)
    if op is Op.WRITE:
        transfer = pair.write(Blocks(make(here), make(there), planes=planes))
        want[rows, there] = source[rows, here]
    else:
        transfer = pair.read(Blocks(make(here), make(there), planes=planes))
        want[rows, here] = source[rows, there]
    assert transfer.wait(30).bytes == len(here) * len(planes) * 4096
    assert np.array_equal(pair.dst, want) and np.array_equal(pair.src, source)


def test_threads_share_a_client(pair):
    """Each thread gets its own transfer's end, whoever reads it."""
    fill(pair.src)
    failed = []

    def run(first):
        try:
            for i in range(50):
                block = first + i % 4
                event = pair.write(Blocks([block], [block]), tag=first * 1000 + i).wait(30)
                assert event.tag == first * 1000 + i
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=run, args=(4 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed and not any(thread.is_alive() for thread in threads)
    assert np.array_equal(pair.dst, pair.src)
    assert pair.prefill.poll() == () and pair.prefill._transfers == {}


def test_wait_releases_the_gil_and_the_lock(pair):
    """A thread that waits without end hinders neither Python nor other calls of the client."""
    open_ = pair.write(streaming=True)
    waiter = threading.Thread(target=open_.wait)
    waiter.start()
    time.sleep(0.05)
    pair.write(Blocks([1], [1])).wait(30)
    open_.append(Blocks([1], [2]))
    open_.seal()
    waiter.join(30)
    assert not waiter.is_alive() and open_.done


def test_poll_of_another_thread_wakes_the_waiting_one(pair):
    open_ = pair.write(streaming=True)
    waiter = threading.Thread(target=open_.wait)
    waiter.start()
    open_.append(Blocks([1], [2]))
    open_.seal()
    end = time.monotonic() + 30
    while not open_.done and time.monotonic() < end:
        pair.prefill.poll()
    waiter.join(30)
    assert not waiter.is_alive()


def test_wait_timeout(pair):
    transfer = pair.write(streaming=True)
    with pytest.raises(TimeoutError):
        transfer.wait(0.05)
    assert pair.prefill.wait(0.05) == []
    assert transfer.cancel()
