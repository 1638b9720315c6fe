"""Shared memory for the pools that SGLang makes on a CPU, and what becomes of its buffers."""

import gc
import os

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

import kvxfer  # noqa: E402
from kvxfer.sglang.memory import Arena, Buffer, allocations, places  # noqa: E402


def test_tensors_of_an_arena_are_zeros_and_lie_in_one_memory():
    arena = Arena("test")
    a, b = arena.tensor((3, 5), torch.bfloat16), arena.tensor((7,), torch.uint64)
    assert not a.any() and not b.any()
    a.fill_(2.5)
    b[3] = 1 << 40
    memory = arena.memory()
    for tensor in (a, b):
        at = arena.offset_of(tensor.data_ptr(), tensor.nbytes)
        raw = bytes(memory.buffer[at : at + tensor.nbytes])
        assert raw == tensor.view(torch.uint8).numpy().tobytes()


def test_arena_outlives_its_name():
    """Tensors hold the memory."""
    tensor = Arena("test").tensor((1 << 20,), torch.uint8)
    gc.collect()
    tensor.fill_(7)
    assert int(tensor.sum()) == 7 << 20


def test_an_arena_that_is_used_does_not_grow():
    arena = Arena("test")
    arena.tensor((10,), torch.float32)
    assert not arena.frozen
    n = arena.memory().nbytes
    assert arena.frozen and arena.memory().nbytes == n


def test_more_memory_than_there_is():
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    with pytest.raises(kvxfer.errors.NoMemory, match="--max-total-tokens"):
        Arena("test").tensor((4 * there,), torch.uint8)


@pytest.mark.parametrize(
    "make, value",
    [
        (lambda: torch.zeros((4, 6), dtype=torch.float16, device="cpu"), 0),
        (lambda: torch.zeros(4, 6, dtype=torch.float16, device="cpu"), 0),
        (lambda: torch.zeros(size=(4, 6), dtype=torch.float16, device="cpu"), 0),
        (lambda: torch.ones((4, 6), dtype=torch.float16, device=torch.device("cpu")), 1),
        (lambda: torch.full((4, 6), 5, dtype=torch.float16, device="cpu"), 5),
        (lambda: torch.full((4, 6), fill_value=5, dtype=torch.float16, device="cpu"), 5),
        (lambda: torch.empty((4, 6), dtype=torch.float16, device="cpu", pin_memory=False), 0),
    ],
)
def test_allocations_are_shared_and_filled(make, value):
    with allocations():
        tensor = make()
    assert tensor.shape == (4, 6) and tensor.dtype == torch.float16 and (tensor == value).all()
    buffer = Buffer("it", tensor.data_ptr(), tensor.nbytes)
    memory, offset = places([buffer], gpu=False)[tensor.data_ptr()]
    tensor.fill_(3)
    assert (
        bytes(memory.buffer[offset : offset + 2])
        == tensor[0, :1].view(torch.uint8).numpy().tobytes()
    )


def test_views_are_shared_too():
    with allocations():
        whole = torch.zeros((4, 64), dtype=torch.uint8, device="cpu")
        view = whole[2:].view(torch.float32)
    found = places(
        [Buffer("whole", whole.data_ptr(), whole.nbytes), Buffer("view", view.data_ptr(), 128)],
        gpu=False,
    )
    assert found[view.data_ptr()][1] - found[whole.data_ptr()][1] == 128


@pytest.mark.parametrize("indexes", [False, True])
def test_tables_of_indexes_are_private_unless_asked_for(indexes):
    with allocations(indexes=indexes):
        table = torch.zeros((4, 4), dtype=torch.int32, device="cpu")
        nowhere = torch.zeros((4, 4))
    buffer = Buffer("table", table.data_ptr(), table.nbytes)
    if indexes:
        places([buffer], gpu=False)
    else:
        with pytest.raises(kvxfer.errors.Unsupported):
            places([buffer], gpu=False)
    with pytest.raises(kvxfer.errors.Unsupported):
        places([Buffer("nowhere", nowhere.data_ptr(), nowhere.nbytes)], gpu=False)


def test_empty_tensors_stay_as_they_are():
    with allocations():
        assert torch.zeros((0, 4), dtype=torch.float32, device="cpu").numel() == 0


def test_private_memory_is_refused_with_what_to_do():
    tensor = torch.zeros(64)
    with pytest.raises(kvxfer.errors.Unsupported) as err:
        places([Buffer("kv_data_ptrs[0]", tensor.data_ptr(), tensor.nbytes)], gpu=False)
    assert "kv_data_ptrs[0]" in str(err.value)
    assert "python -m kvxfer.sglang.launch_server" in str(err.value)


def test_on_a_gpu_metadata_must_still_be_shared():
    tensor = torch.zeros(64)
    with pytest.raises(kvxfer.errors.Unsupported, match="aux_data_ptrs"):
        places([Buffer("aux_data_ptrs[0]", tensor.data_ptr(), tensor.nbytes, host=True)], gpu=True)


def test_all_buffers_of_a_gpu_are_one_memory():
    """Addresses only: nothing is registered here."""
    found = places(
        [Buffer("a", 0x10000, 4096), Buffer("b", 0x90000, 8192), Buffer("a", 0x10000, 4096)],
        gpu=True,
    )
    memory = found[0x10000][0]
    assert memory is found[0x90000][0] and memory.pieces == ((0x10000, 4096), (0x90000, 8192))
    assert found[0x10000][1] == 0 and found[0x90000][1] == 4096
