"""Planes from the engine's tensors: checked by address arithmetic of the tensors themselves, and by
moving blocks between different layouts."""

import numpy as np
import pytest

import kvxfer
from kvxfer import Blocks, Memory, errors, layout

N_BLOCKS, TOKENS, HEADS, DIM = 6, 4, 2, 8


class NumpyMaker:
    name = "numpy"

    @staticmethod
    def make(memory, shape, offset, dtype="float32"):
        return memory.numpy(dtype, shape, offset)

    @staticmethod
    def permute(tensor, order):
        return tensor.transpose(order)

    @staticmethod
    def as_numpy(tensor):
        return tensor


class TorchMaker:
    name = "torch"

    @staticmethod
    def make(memory, shape, offset, dtype="float32"):
        torch = pytest.importorskip("torch")
        return memory.torch(getattr(torch, dtype), shape, offset)

    @staticmethod
    def permute(tensor, order):
        return tensor.permute(order)

    @staticmethod
    def as_numpy(tensor):
        return tensor.numpy()


@pytest.fixture(params=[NumpyMaker, TorchMaker], ids=lambda maker: maker.name)
def maker(request):
    return request.param


def block_bytes(memory, plane, block):
    start = plane.offset + block * plane.block_stride
    return bytes(memory.buffer[start:start + plane.block_bytes])


def fill(memory):
    array = memory.numpy("uint8")
    array[...] = np.random.default_rng(1).integers(0, 256, array.shape, dtype=np.uint8)


def test_mla(maker):
    memory = Memory(1 << 20)
    fill(memory)
    tensors = [maker.make(memory, (N_BLOCKS, TOKENS, 576), 4096 + i * 65536) for i in range(3)]
    made = layout.mla(memory, tensors)
    assert [p.name for p in made.planes] == ["layer0.kv", "layer1.kv", "layer2.kv"]
    for plane, tensor in zip(made.planes, tensors):
        for b in range(N_BLOCKS):
            assert block_bytes(memory, plane, b) == maker.as_numpy(tensor)[b].tobytes()


@pytest.mark.parametrize("kv_dim", [0, 1])
def test_split_and_interleaved(maker, kv_dim):
    memory = Memory(1 << 20)
    fill(memory)
    shape = [N_BLOCKS, TOKENS, HEADS, DIM]
    shape.insert(kv_dim, 2)
    tensors = [maker.make(memory, shape, i * 8192) for i in range(3)]
    helper = (layout.split_kv, layout.interleaved_kv)[kv_dim]
    made = helper(memory, tensors)
    assert [p.name for p in made.planes][:3] == ["layer0.k", "layer0.v", "layer1.k"]
    for i, plane in enumerate(made.planes):
        assert plane.n_blocks == N_BLOCKS
        for b in range(N_BLOCKS):
            array = maker.as_numpy(tensors[i // 2])
            index = (i % 2, b) if kv_dim == 0 else (b, i % 2)
            assert block_bytes(memory, plane, b) == array[index].tobytes()


def test_pairs_of_k_and_v(maker):
    memory = Memory(1 << 16)
    k = maker.make(memory, (N_BLOCKS, 64), 0)
    v = maker.make(memory, (N_BLOCKS, 64), 8192)
    planes = layout.split_kv(memory, [(k, v)]).planes
    assert [p.offset for p in planes] == [0, 8192]


def test_permuted_views_have_the_planes_of_their_memory(maker):
    """HND memory seen as NHD: the block is the same bytes."""
    memory = Memory(1 << 16)
    hnd = maker.make(memory, (2, N_BLOCKS, HEADS, TOKENS, DIM), 0)
    nhd = maker.permute(hnd, (0, 1, 3, 2, 4))
    assert layout.split_kv(memory, [nhd]) == layout.split_kv(memory, [hnd])


def test_state_slots_with_gaps(maker):
    memory = Memory(1 << 16)
    wide = maker.make(memory, (N_BLOCKS, 128), 0, "float16")
    conv, ssm = wide[:, :32], wide[:, 32:100]
    planes = layout.state(memory, [conv, ssm]).planes
    assert planes == (kvxfer.Plane("state0", 0, 256, 64, N_BLOCKS),
                      kvxfer.Plane("state1", 64, 256, 136, N_BLOCKS))


def test_one_block_only(maker):
    memory = Memory(1 << 16)
    tensor = maker.make(memory, (1, 64), 0)
    assert layout.plane(memory, tensor) == kvxfer.Plane("", 0, 256, 256, 1)


def test_refused(maker):
    memory, other = Memory(1 << 16), Memory(1 << 16)
    tensor = maker.make(memory, (N_BLOCKS, 4, 8), 0)
    with pytest.raises(errors.Invalid, match="does not lie in this memory"):
        layout.mla(other, [tensor])
    with pytest.raises(errors.Invalid, match="do not lie together"):
        layout.mla(memory, [tensor[:, :, :4]])
    with pytest.raises(errors.Invalid, match="apart"):
        layout.plane(memory, maker.as_numpy(tensor)[::-1])
    with pytest.raises(errors.Invalid, match="no dimension"):
        layout.plane(memory, tensor, block_dim=3)
    with pytest.raises(errors.Invalid, match="K and V"):
        layout.split_kv(memory, [tensor])
    with pytest.raises(errors.Invalid):
        layout.mla(memory, [object()])


def test_gpu_tensors_are_refused_clearly():
    torch = pytest.importorskip("torch")
    memory = Memory(4096)
    with pytest.raises(errors.Unsupported, match="GPU"):
        layout.mla(memory, [torch.empty(2, 2, device="meta")])

    class Cupy:
        __cuda_array_interface__ = {}

    with pytest.raises(errors.Unsupported, match="GPU"):
        memory.offset_of(Cupy())


def test_groups_of_different_block_sizes_and_kinds(shared_node, maker):
    """Full attention (split here, interleaved there), sliding window, and Mamba state, each with
    its own block ids."""
    if maker is TorchMaker:
        pytest.importorskip("torch")
    clients = [shared_node.client(name) for name in ("prefill", "decode")]
    sides = []
    for client, kv_dim in zip(clients, (0, 1)):
        memory = Memory(1 << 18)
        shape = [N_BLOCKS, TOKENS, HEADS, DIM]
        shape.insert(kv_dim, 2)
        full = [maker.make(memory, shape, i * 8192) for i in range(2)]
        swa = [maker.make(memory, (2, 4, 16, HEADS, DIM), 65536 + i * 16384) for i in range(2)]
        mamba = [maker.make(memory, (8, 100), 131072), maker.make(memory, (8, 40), 140000, "int16")]
        joined = layout.join({
            "full": (layout.split_kv, layout.interleaved_kv)[kv_dim](memory, full),
            "swa": layout.split_kv(memory, swa), "mamba": layout.state(memory, mamba)})
        region = client.register(memory, layout=joined, access="w")
        sides.append((memory, joined, region, [maker.as_numpy(t) for t in full + swa + mamba]))
    (memory, made, region, src), (_, _, remote_region, dst) = sides
    fill(memory)
    remote = clients[0].open_import(remote_region.export(), compare=region)
    ids = {"full": ([1, 2], [5, 0]), "swa": ([3], [1]), "mamba": ([7], [2])}
    with clients[0].write(region, remote, streaming=True) as transfer:
        for group, (here, there) in ids.items():
            transfer.append(Blocks(here, there, planes=made.group(group)))
    assert transfer.wait(30).ok
    for i in range(2):
        assert dst[i][[5, 0]].tobytes() == src[i][:, [1, 2]].swapaxes(0, 1).tobytes()
        assert dst[2 + i][:, 1].tobytes() == src[2 + i][:, 3].tobytes()
        assert dst[4 + i][2].tobytes() == src[4 + i][7].tobytes()
    assert not dst[0][[1, 2, 3, 4]].any() and not dst[2][:, [0, 2, 3]].any()
    with pytest.raises(errors.Invalid):
        made.group("none")
    for client in clients:
        client.close()


def test_torch_block_ids(pair):
    torch = pytest.importorskip("torch")
    pair.src[...] = np.random.default_rng(2).integers(0, 256, pair.src.shape, dtype=np.uint8)
    for dtype in (torch.int32, torch.int64, torch.uint8):
        local = torch.arange(20, dtype=dtype)[::2]
        remote = torch.arange(10, dtype=dtype).flip(0)
        pair.dst[...] = 0
        pair.write(Blocks(local, remote)).wait(30)
        assert np.array_equal(pair.dst[:, remote.numpy()], pair.src[:, local.numpy()])
    with pytest.raises(errors.Invalid):
        pair.write(Blocks(torch.zeros(1), torch.zeros(1)))
    with pytest.raises(errors.Unsupported):
        pair.write(Blocks(torch.zeros(1, dtype=torch.int32, device="meta"), [0]))


def test_torch_views(pair):
    torch = pytest.importorskip("torch")
    region = pair.regions[0]
    tensor = region.torch(torch.bfloat16, (2, 8), 64)
    tensor.fill_(1)
    assert region.offset_of(tensor) == 64 and tensor.data_ptr() == region.memory.address + 64
    assert bytes(region.memory.buffer[64:66]) == b"\x80\x3f"
    with pytest.raises(errors.Invalid):
        region.torch(torch.int8, (region.nbytes + 1,))
    assert region.torch(torch.int8).numel() == region.nbytes
