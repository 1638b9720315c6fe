"""GPU memory as a region, on the stand-in for a GPU runtime that the C tests build: KVXFER_STANDIN
names its folder (BUILD/tests/gpu/standin). Nothing here needs a GPU, or says anything about one."""

import ctypes
import functools
import os
import pathlib

import numpy as np
import pytest

from conftest import Node
from kvxfer import Blocks, Memory, Op, Ops, errors, layout

FOLDER = os.environ.get("KVXFER_STANDIN", "")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="no stand-in GPU runtime: set KVXFER_STANDIN to BUILD/tests/gpu/standin")


class Tensor:
    """Of the stand-in's device memory, as another package's array would show it."""

    def __init__(self, address, shape, typestr="<u2", strides=None):
        self.__cuda_array_interface__ = {"data": (address, False), "shape": shape,
                                         "typestr": typestr, "strides": strides, "version": 3}


class Gpu:
    """The stand-in's CUDA, called as an engine's libraries do."""

    def __init__(self):
        self.standin = ctypes.CDLL(str(pathlib.Path(FOLDER) / "libkvxgpustandin.so"))
        self.standin.standin_create(2, ctypes.c_uint64(64 << 20))
        self.standin.standin_path.restype = ctypes.c_char_p
        os.environ["KVX_GPU_STANDIN"] = self.standin.standin_path().decode()
        self.cuda = ctypes.CDLL(str(pathlib.Path(FOLDER) / "cuda" / "libcuda.so.1"))
        self.check(self.cuda.cuInit(0))
        self.device = {}

    @staticmethod
    def check(code):
        assert code == 0, code

    def use(self, device):
        ctx = ctypes.c_void_p()
        self.check(self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctx), device))
        self.check(self.cuda.cuCtxSetCurrent(ctx))

    def alloc(self, device, nbytes):
        address = ctypes.c_uint64()
        self.use(device)
        self.check(self.cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(nbytes)))
        self.device[address.value] = device
        return address.value

    def put(self, address, array):
        self.use(self.device[address])
        self.check(self.cuda.cuMemcpyHtoD_v2(ctypes.c_uint64(address),
                                             array.ctypes.data_as(ctypes.c_void_p),
                                             ctypes.c_size_t(array.nbytes)))

    def get(self, address, shape, dtype="uint16"):
        array = np.empty(shape, dtype)
        self.use(self.device[address])
        self.check(self.cuda.cuMemcpyDtoH_v2(array.ctypes.data_as(ctypes.c_void_p),
                                             ctypes.c_uint64(address),
                                             ctypes.c_size_t(array.nbytes)))
        return array


@functools.cache
def the_gpu():
    """A process has one node of the stand-in."""
    return Gpu()


@pytest.fixture(scope="module")
def gpu():
    return the_gpu()


@pytest.fixture(scope="module")
def node(gpu):
    node = Node(f"gpu.library_dir={FOLDER}/cuda")
    yield node
    node.stop()


SHAPE = (8, 16, 32)  # blocks, tokens, elements


def test_kv_tensors_of_a_gpu_are_moved_to_another(gpu, node):
    nbytes = int(np.prod(SHAPE)) * 2
    tensors, data = [[], []], []
    for side in (0, 1):
        for layer in range(4):
            tensors[side].append(Tensor(gpu.alloc(side, nbytes), SHAPE))
    for layer, tensor in enumerate(tensors[0]):
        data.append(np.random.default_rng(layer).integers(0, 65536, SHAPE, "uint16"))
        gpu.put(tensor.__cuda_array_interface__["data"][0], data[-1])
    a, b = Memory.of_gpu(*tensors[0]), Memory.of_gpu(*tensors[1])
    assert a.nbytes == 4 * nbytes and len(a.pieces) == 4
    with node.client("prefill") as prefill, node.client("decode") as decode:
        src = prefill.register(a, layout=layout.mla(a, tensors[0]), access="r", name="kv")
        dst = decode.register(b, layout=layout.mla(b, tensors[1]), access="w")
        far = decode.open_import(src.export(), compare=dst)
        assert far.transport == "gpu"
        done = decode.submit(Op.READ, dst, far, Blocks([1, 2, 5], [7, 0, 3])).wait(30)
        assert done.transport == "gpu"
    for layer, tensor in enumerate(tensors[1]):
        got = gpu.get(tensor.__cuda_array_interface__["data"][0], SHAPE)
        assert np.array_equal(got[[1, 2, 5]], data[layer][[7, 0, 3]])


def test_between_cpu_and_gpu_memory(gpu, node):
    address = gpu.alloc(1, 1 << 16)
    gpu.put(address, np.zeros(1 << 16, "uint8"))
    with node.client() as client:
        host = client.alloc(1 << 16, access="rw")
        host.numpy()[:] = np.arange(1 << 16, dtype="uint64").astype("uint8")
        device = client.register(Memory.of_gpu((address, 1 << 16), in_use=True), access="rw")
        far = client.open_import(device.export())
        client.submit(Op.WRITE, host, far, Ops([0], [0], 1 << 16)).wait(30)
    assert np.array_equal(gpu.get(address, 1 << 16, "uint8"), host.numpy())


def test_what_gpu_memory_cannot_do_is_said(gpu, node):
    tensor = Tensor(gpu.alloc(0, 4096), (16, 128))
    memory = Memory.of_gpu(tensor)
    for use in (memory.numpy, lambda: memory.torch(None), lambda: memory.buffer,
                lambda: memory.address):
        with pytest.raises(errors.Unsupported, match="GPU memory"):
            use()
    assert memory.offset_of(tensor) == 0
    with pytest.raises(errors.Invalid, match="does not lie"):
        memory.offset_of(Tensor(memory.pieces[0][0] + 4096, (1, 1)))
    with pytest.raises(errors.Invalid):
        Memory.of_gpu()
    with pytest.raises(errors.Invalid, match="nbytes"):
        Memory.of_gpu(memory.pieces[0][0])
    with pytest.raises(errors.Invalid, match="no tensor"):
        Memory.of_gpu(np.zeros(4))
    with node.client() as client:
        with pytest.raises(errors.KvxferError, match="not memory of a GPU"):
            client.register(Memory.of_gpu((4096, 4096)))
        with pytest.raises(errors.Invalid, match="device 1"):
            client.register(Memory.of_gpu(tensor, (gpu.alloc(1, 4096), 4096)))
        with pytest.raises(errors.Invalid, match="allocation of"):
            client.register(Memory.of_gpu((memory.pieces[0][0], 1 << 30)))
