"""Lists that wait: for a flag in host memory, and for events of a GPU on the stand-in for a GPU
runtime (KVXFER_STANDIN, see test_gpu.py), in the package and in kvxfer.pd."""

import ctypes
import gc
import struct
import time

import numpy as np
import pytest
import test_gpu
from pd_ranks import outcome, until

from conftest import Node, Pair
from kvxfer import Blocks, EventPool, Memory, Op, Ops, Wait, errors, layout, pd

on_gpu = pytest.mark.skipif(not test_gpu.FOLDER, reason="no stand-in GPU runtime: set "
                            "KVXFER_STANDIN to BUILD/tests/gpu/standin")
SHAPE = test_gpu.SHAPE
NBYTES = int(np.prod(SHAPE)) * 2


# ---- flags


def test_a_list_waits_for_a_flag_and_those_behind_it_for_the_list(pair):
    region = pair.regions[0]
    flags = pair.prefill.alloc(4096)
    pair.src[:] = 7
    with pair.write(streaming=True) as transfer:
        transfer.append(Blocks([1], [1]), wait=Wait.flag(flags, 16, 2))
        transfer.append(Blocks([2], [2]))
    time.sleep(0.05)
    assert not transfer.done and not pair.dst[:, 1:3].any()
    flags.numpy("uint64")[2] = 1
    time.sleep(0.02)
    assert not transfer.done
    flags.numpy("uint64")[2] = 3
    assert transfer.wait(30).bytes == 2 * 4 * 4096
    assert (pair.dst[:, 1:3] == 7).all() and not pair.dst[:, 3].any()
    region_gone = pair.write(Blocks([1], [1]), wait=Wait.flag(flags, 24, 1))
    flags.close()
    with pytest.raises(errors.RegionLost):
        region_gone.wait(30)
    assert not region.closed


def test_a_list_to_another_node_waits_too(shared_node):
    other = Node()
    pair = Pair(shared_node, decode_node=other)
    flags = pair.prefill.alloc(4096)
    pair.src[:] = 7
    transfer = pair.write(Blocks([1], [1]), wait=Wait.flag(flags, 0, 1))
    time.sleep(0.1)
    assert not transfer.done and not pair.dst.any()
    pair.src[:] = 8
    flags.numpy("uint64")[0] = 1
    assert transfer.wait(30).transport == "fabric"
    assert (pair.dst[:, 1] == 8).all()
    pair.close()
    other.stop()


def test_the_deadline_says_what_was_waited_for(pair):
    flag = Wait.flag(pair.regions[0], 0, 2**64 - 1)
    with pytest.raises(errors.Deadline, match="flag"):
        pair.write(Blocks([1], [1]), wait=flag, deadline=0.1).wait(30)
    assert not flag.query()


def test_waits_that_cannot_be_are_refused(pair):
    for wrong in (Wait.flag(pair.regions[0], 4, 1), Wait.flag(pair.regions[0], 1 << 40, 1),
                  Wait.event(bytes(range(64)), region=pair.regions[0])):
        with pytest.raises(errors.Invalid, match="wait"):
            pair.write(Blocks([1], [1]), wait=wrong)
    with pytest.raises(errors.Invalid, match="without blocks"):
        pair.write(streaming=True, wait=Wait.flag(pair.regions[0], 0, 1))
    with pytest.raises(errors.Invalid, match="64 bytes"):
        Wait.event(b"short")
    with pytest.raises(errors.Invalid, match="interprocess"):
        Wait.event(object())


# ---- events


class Event:
    """As torch.cuda.Event(interprocess=True), of the stand-in."""

    made = 0

    def __init__(self, gpu, stream, interprocess=True):
        self.gpu, self.stream = gpu, stream
        self.event = ctypes.c_void_p()
        Event.made += 1
        gpu.check(gpu.cuda.cuEventCreate(ctypes.byref(self.event), 6 if interprocess else 2))

    def record(self):
        self.gpu.check(self.gpu.cuda.cuEventRecord(self.event, self.stream))

    def query(self):
        code = self.gpu.cuda.cuEventQuery(self.event)
        assert code in (0, 600), code
        return code == 0

    def ipc_handle(self):
        handle = ctypes.create_string_buffer(64)
        code = self.gpu.cuda.cuIpcGetEventHandle(handle, self.event)
        if code != 0:
            raise RuntimeError(f"CUDA error {code}")
        return handle.raw


class Stream:
    """A stream of device 0, and page-locked memory that its kernels write from."""

    def __init__(self, gpu, nbytes):
        self.gpu, self.stream, address = gpu, ctypes.c_void_p(), ctypes.c_void_p()
        gpu.use(0)
        gpu.check(gpu.cuda.cuStreamCreate(ctypes.byref(self.stream), 1))
        gpu.check(gpu.cuda.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(nbytes), 0))
        self.staged = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address.value))

    def launch(self, to, first, nbytes):
        """A "kernel" that writes staged[first, + nbytes) there."""
        self.gpu.check(self.gpu.cuda.cuMemcpyAsync(
            ctypes.c_uint64(to), ctypes.c_uint64(self.staged.ctypes.data + first),
            ctypes.c_size_t(nbytes), self.stream))


@pytest.fixture(scope="module")
def gpu():
    if not test_gpu.FOLDER:
        pytest.skip("no stand-in GPU runtime")
    return test_gpu.the_gpu()


@pytest.fixture(scope="module")
def node(gpu):
    node = Node(f"gpu.library_dir={test_gpu.FOLDER}/cuda")
    yield node
    node.stop()


@pytest.fixture
def stall(gpu):
    """Device 0 stands still between stall(True) and stall(False)."""
    yield lambda on: gpu.standin.standin_stall(0, on)
    gpu.standin.standin_stall(0, False)


def tensors_of(gpu, device, n):
    return [test_gpu.Tensor(gpu.alloc(device, NBYTES), SHAPE) for _ in range(n)]


def address(tensor):
    return tensor.__cuda_array_interface__["data"][0]


@on_gpu
def test_what_is_written_before_the_event_is_what_arrives(gpu, node, stall):
    stream = Stream(gpu, 4 * NBYTES)
    stream.staged[:] = np.random.default_rng(1).integers(0, 256, 4 * NBYTES, "uint8")
    here, there = tensors_of(gpu, 0, 4), tensors_of(gpu, 1, 4)
    a, b = Memory.of_gpu(*here), Memory.of_gpu(*there)
    pool = EventPool(lambda: Event(gpu, stream.stream))
    with node.client("prefill") as prefill, node.client("decode") as decode:
        src = prefill.register(a, layout=layout.mla(a, here))
        far = prefill.open_import(decode.register(b, layout=layout.mla(b, there),
                                                  access="w").export())
        gpu.use(0)
        stall(True)
        with prefill.write(src, far, streaming=True) as transfer:
            for i, tensor in enumerate(here):
                stream.launch(address(tensor), i * NBYTES, NBYTES)
                transfer.append(Blocks(range(8), range(8), planes=i), wait=pool.record())
        time.sleep(0.05)
        assert not transfer.done
        stall(False)
        assert transfer.wait(30).transport == "gpu"
        for i, tensor in enumerate(there):
            got = gpu.get(address(tensor), NBYTES, "uint8")
            assert np.array_equal(got, stream.staged[i * NBYTES:(i + 1) * NBYTES]), i


@on_gpu
def test_events_that_cannot_be_shared_are_refused(gpu, node):
    stream = Stream(gpu, 4096)
    with pytest.raises(errors.Invalid, match="interprocess"):
        Wait.event(Event(gpu, stream.stream, interprocess=False))
    memory = Memory.of_gpu((gpu.alloc(0, 4096), 4096))
    with node.client() as client:
        region = client.register(memory, access="rw")
        far = client.open_import(region.export())
        unknown = Wait.event(struct.pack("<64s", b"no event at all"))
        with pytest.raises(errors.Invalid, match="does not know the event"):
            client.submit(Op.WRITE, region, far, Ops([0], [2048], 64), wait=unknown).wait(30)


@on_gpu
def test_a_pool_uses_an_event_again_only_when_it_was_reached(gpu, stall):
    stream = Stream(gpu, 4096)
    pool = EventPool(lambda: Event(gpu, stream.stream), most=3)
    made = Event.made
    stall(True)
    waits = [pool.record() for _ in range(3)]
    assert Event.made == made + 3 and not any(wait.query() for wait in waits)
    assert pool.record() is None
    stall(False)
    gpu.check(gpu.cuda.cuStreamSynchronize(stream.stream))
    stall(True)
    again = pool.record()
    assert Event.made == made + 3 and again._handle == waits[0]._handle
    assert waits[0].query() and not again.query()  # of the same event
    gc.collect()


@on_gpu
def test_a_pool_leaves_an_event_alone_while_a_transfer_names_it(gpu, node):
    stream = Stream(gpu, NBYTES)
    pool = EventPool(lambda: Event(gpu, stream.stream), most=2)
    with node.client() as client:
        memory = Memory.of_gpu((gpu.alloc(0, 4096), 4096))
        region = client.register(memory, access="rw")
        far = client.open_import(region.export())
        gpu.use(0)
        first = pool.record()
        transfer = client.submit(Op.WRITE, region, far, Ops([0], [2048], 64), wait=first)
        gpu.check(gpu.cuda.cuStreamSynchronize(stream.stream))
        assert first.query() and not transfer.done  # nobody has read its end
        assert pool.record()._handle != first._handle
        transfer.wait(30)
        assert pool.record()._handle == first._handle
        # What it was for is over: who names it now waits for nothing.
        assert first._is_spent() and first.on(region)._is_spent()
        assert client.submit(Op.WRITE, region, far, Ops([0], [2048], 64), wait=first).wait(30)


# ---- kvxfer.pd


def rank_of(gpu, node, name, device):
    tensors = tensors_of(gpu, device, 4)
    part = pd.Part("kv", NBYTES // SHAPE[0] // 16, 1, 0, 1, "NHD")
    group = pd.Group("main", ("l0", "l1", "l2", "l3"), 16, SHAPE[0], (part,))
    memory = Memory.of_gpu(*tensors)
    rank = pd.Rank(name, socket=node.socket, timeout=20)
    rank.serve(pd.Pool.of([group], {(0, i, 0): (memory, t) for i, t in enumerate(tensors)}))
    return rank, tensors


class Handle:
    def __init__(self, rank):
        self.rank = rank


@on_gpu
@pytest.mark.parametrize("asked", ["first", "between", "last"])
def test_an_offer_leaves_waiting_to_the_daemon(gpu, node, stall, asked):
    stream = Stream(gpu, 4 * NBYTES)
    stream.staged[:] = np.random.default_rng(2).integers(0, 256, 4 * NBYTES, "uint8")
    prefill, here = rank_of(gpu, node, "prefill", 0)
    decode, there = rank_of(gpu, node, "decode", 1)
    pool = EventPool(lambda: Event(gpu, stream.stream))
    everything = list(range(SHAPE[0]))

    def expect():
        decode.expect("r", pd.Endpoint(prefill.address, "prefill"), {0: (0, everything)},
                      deadline=20)

    if asked == "first":
        expect()
    stall(True)
    offer = prefill.offer("r", deadline=20)
    if asked == "first":
        until(lambda: offer.claimed)
    gpu.use(0)
    for i in range(4):
        if asked == "between" and i == 2:
            expect()
            until(lambda: offer.claimed)
        stream.launch(address(here[i]), i * NBYTES, NBYTES)
        offer.add(0, 0, everything, layers=range(i, i + 1), after=pool.record())
    offer.seal()
    if asked == "last":
        expect()
    if asked == "first":
        with node.client() as client:
            until(lambda: client.query("status")["waits"] == 4)
        assert not prefill._hub._polled, "the rank's thread asks for the events"
    time.sleep(0.1)
    assert not prefill.finished() and not decode.finished()
    stall(False)
    assert outcome(Handle(decode)).error is None and outcome(Handle(prefill)).error is None
    for i, tensor in enumerate(there):
        got = gpu.get(address(tensor), NBYTES, "uint8")
        assert np.array_equal(got, stream.staged[i * NBYTES:(i + 1) * NBYTES]), i
    prefill.close()
    decode.close()


@on_gpu
def test_a_daemon_that_cannot_wait_is_not_asked_to(gpu, node, stall):
    stream = Stream(gpu, NBYTES)
    prefill, here = rank_of(gpu, node, "prefill", 0)
    decode, there = rank_of(gpu, node, "decode", 1)
    prefill._hub._waits = False  # as of an older daemon
    pool = EventPool(lambda: Event(gpu, stream.stream))
    decode.expect("r", pd.Endpoint(prefill.address, "prefill"), {0: (0, [0, 1])}, deadline=20)
    offer = prefill.offer("r", deadline=20)
    gpu.use(0)
    stream.staged[:] = 9
    stall(True)
    stream.launch(address(here[0]), 0, NBYTES)
    offer.add(0, 0, [0, 1], after=pool.record())
    offer.seal()
    time.sleep(0.05)
    with node.client() as client:
        assert client.query("status")["waits"] == 0
    stall(False)
    assert outcome(Handle(decode)).error is None and outcome(Handle(prefill)).error is None
    assert (gpu.get(address(there[0]), NBYTES, "uint8")[:NBYTES // 4] == 9).all()
    prefill.close()
    decode.close()
