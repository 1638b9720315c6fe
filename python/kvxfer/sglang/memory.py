"""Where the buffers of a rank lie: shared memory for what SGLang makes on the CPU.

SGLang hands a KVManager raw pointers. What they point to can be moved by the daemon when it is GPU
memory, or shared memory of ours. So the CPU buffers are made in shared memory from the start:
:func:`allocations` answers ``torch.zeros`` and its like while SGLang makes its pools. Every view
and every raw pointer that SGLang keeps is right then; nothing is moved afterwards.

The scheduler's thread alone uses this module, while the engine starts.
"""

import errno
import mmap
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch.overrides import TorchFunctionMode

from .. import errors
from ..region import Memory

__all__ = ["Arena", "Buffer", "SharedAllocations", "allocations", "places"]

_STEP_BYTES = 64 << 20
_INDEX_TYPES = (torch.int32, torch.int64)
_FILLS = {torch.zeros: 0, torch.empty: None, torch.ones: 1, torch.full: None}


class Arena:
    """Shared memory that grows: one memfd, mapped once at an address that stays.

    Address space for twice the machine's memory is mapped; pages are there only for what was handed
    out. After ``memory()`` it does not grow any more.
    """

    def __init__(self, name: str) -> None:
        reserve = 2 * _machine_bytes()
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, reserve)
            self._map = mmap.mmap(self._fd, reserve)
            os.ftruncate(self._fd, 0)
        except OSError as err:
            raise errors.NoMemory(f"{reserve} bytes of address space: {err}") from None
        self._address = torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()
        self._nbytes = 0
        self._memory: Optional[Memory] = None

    def __del__(self) -> None:
        os.close(self._fd)

    @property
    def frozen(self) -> bool:
        return self._memory is not None

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A new tensor of zeros. Holds the arena. Raises NoMemory."""
        count = 1
        for n in shape:
            count *= n
        at = self._nbytes
        nbytes = -(-count * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            if nbytes > _machine_bytes():  # known before the system has to kill somebody for it
                raise OSError(errno.ENOMEM, "more than this machine has")
            for step in range(at, at + nbytes, _STEP_BYTES):
                os.posix_fallocate(self._fd, step, min(_STEP_BYTES, at + nbytes - step))
        except OSError as err:
            raise errors.NoMemory(f"{nbytes} bytes of shared memory for a KV pool: {err}; lower "
                                  "--max-total-tokens or --mem-fraction-static") from None
        self._nbytes = at + nbytes
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=at).view(list(shape))

    def offset_of(self, address: int, nbytes: int) -> Optional[int]:
        """None where [address, + nbytes) is not of this arena."""
        at = address - self._address
        return at if 0 <= at and at + nbytes <= self._nbytes else None

    def memory(self) -> Memory:
        """All that was handed out, as one Memory."""
        if self._memory is None:
            self._memory = Memory.from_fd(self._fd, self._nbytes)
        return self._memory


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE


_arenas: List[Arena] = []


def _arena() -> Arena:
    if not _arenas or _arenas[-1].frozen:
        _arenas.append(Arena("sglang"))
    return _arenas[-1]


class SharedAllocations(TorchFunctionMode):
    """While it is entered, tensors that this thread makes on the CPU by name of the device
    (``torch.zeros(..., device="cpu")``; empty, ones and full, too) lie in shared memory.

    Args:
        indexes: also tensors of int32 and int64. Without, tables of indexes stay private: no other
            client of the daemon has business with them.
    """

    def __init__(self, *, indexes: bool) -> None:
        super().__init__()
        self._indexes = indexes

    def __torch_function__(self, func: Any, types: Any, args: Tuple[Any, ...] = (),
                           kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        if func not in _FILLS or str(kwargs.get("device")) != "cpu":
            return func(*args, **kwargs)
        options = {**kwargs, "device": "meta"}
        options.pop("pin_memory", None)
        like = func(*args, **options)
        if like.numel() == 0 or not self._indexes and like.dtype in _INDEX_TYPES:
            return func(*args, **kwargs)
        made = _arena().tensor(like.shape, like.dtype)
        fill = kwargs.get("fill_value", args[1] if len(args) > 1 else None) \
            if func is torch.full else _FILLS[func]
        if fill:
            made.fill_(fill)
        return made


def allocations(*, indexes: bool = False) -> SharedAllocations:
    """A context in which CPU tensors are made in shared memory."""
    return SharedAllocations(indexes=indexes)


class Buffer(NamedTuple):
    """A buffer of a KVArgs."""

    what: str  #: for people
    address: int
    nbytes: int
    host: bool = False  #: on the CPU also where the engine runs on a GPU


def places(buffers: Sequence[Buffer], *, gpu: bool) -> Dict[int, Tuple[Memory, int]]:
    """The memory in which each buffer lies, and its offset there, by its address: the one place
    where it is decided how buffers of SGLang's become regions. Shared memory is taken as it is; all
    GPU buffers together are one memory.

    Args:
        gpu: whether the engine runs on a GPU.

    Raises Unsupported: a buffer is neither.
    """
    out: Dict[int, Tuple[Memory, int]] = {}
    pieces: Dict[int, int] = {}
    for buffer in buffers:
        shared = _shared(buffer)
        if shared is not None:
            out[buffer.address] = shared
        elif gpu and not buffer.host:
            pieces[buffer.address] = max(buffer.nbytes, pieces.get(buffer.address, 0))
        else:
            raise errors.Unsupported(
                f"{buffer.what} (address {buffer.address:#x}, {buffer.nbytes} bytes) is private "
                "memory of this process, which no daemon can move. Pools on the CPU and metadata "
                "buffers are made in shared memory when kvxfer's plugin is loaded before SGLang "
                "makes them: see that the log says \"Executed general plugin: kvxfer\", that "
                "SGLANG_PLUGINS, if set, names kvxfer, or start with "
                "\"python -m kvxfer.sglang.launch_server\"")
    if pieces:
        memory = Memory.of_gpu(*pieces.items())
        offset = 0
        for address, nbytes in pieces.items():
            out[address] = memory, offset
            offset += nbytes
    return out


def _shared(buffer: Buffer) -> Optional[Tuple[Memory, int]]:
    for arena in _arenas:
        offset = arena.offset_of(buffer.address, buffer.nbytes)
        if offset is not None:
            return arena.memory(), offset
    return None
