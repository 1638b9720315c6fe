"""The registered memory of a stage process, and who uses which part of it.

The package's own BufferAllocator and ManagedBuffer hand out the parts, as they do for its other
connectors, so that what ``get`` returns is what the package's callers know. What is added here:
how much is used, a wait for room, and pins: a part that is pinned is not handed out again before
the last pin is gone, whoever releases it.
"""

import threading
import time
from typing import Any, Dict, Optional

import torch
from vllm_omni.distributed.omni_connectors.utils.memory_pool import BufferAllocator, ManagedBuffer

import kvxfer

__all__ = ["ManagedBuffer", "Pool", "PoolFull", "PoolTooSmall"]

_ALIGN = 4096


class PoolFull(MemoryError):
    """No room now: what was put has not been fetched, or what was got is still held."""


class PoolTooSmall(PoolFull):
    """More bytes than the whole pool has: waiting does not help."""


class _Allocator(BufferAllocator):
    """The package's allocator, which knows what is used. Any thread."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes, alignment=_ALIGN)
        self.room = threading.Condition()
        self.used = 0
        self.buffers = 0
        self._pins: Dict[int, int] = {}
        self._late: Dict[int, int] = {}

    def alloc(self, size: int) -> int:
        offset = int(super().alloc(size))
        with self.room:
            self.used += _aligned(size)
            self.buffers += 1
        return offset

    def free(self, offset: int, size: int) -> None:
        with self.room:
            if self._pins.get(offset, 0):
                self._late[offset] = size
                return
            super().free(offset, size)
            self.used -= _aligned(size)
            self.buffers -= 1
            self.room.notify_all()

    def pin(self, offset: int) -> None:
        with self.room:
            self._pins[offset] = self._pins.get(offset, 0) + 1

    def unpin(self, offset: int) -> None:
        with self.room:
            left = self._pins.pop(offset) - 1
            if left:
                self._pins[offset] = left
                return
            size = self._late.pop(offset, None)
        if size is not None:
            self.free(offset, size)


class Pool:
    """Memory and its allocator. Any thread; only ``alloc`` may block.

    Attributes:
        memory: the kvxfer.Memory that is registered.
        tensor: all of it as a CPU tensor of uint8.
        nbytes: its length.
    """

    def __init__(self, nbytes: int, *, hugepages: bool = False) -> None:
        """Raises kvxfer's NoMemory: all pages are charged now."""
        self.memory = kvxfer.Memory(nbytes, hugepages=hugepages, name="kvxfer-omni")
        self.tensor = self.memory.torch(torch.uint8)
        self.nbytes = self.memory.nbytes
        self._bytes = self.memory.buffer
        self._allocator = _Allocator(self.nbytes)
        self._pinned_host = _pin_for_gpu(self.tensor)

    def alloc(self, nbytes: int, wait: float = 0.0) -> ManagedBuffer:
        """A part of ``nbytes`` > 0; waits for room at most ``wait`` seconds. Raises PoolTooSmall,
        PoolFull."""
        if _aligned(nbytes) > self.nbytes:
            raise PoolTooSmall(f"{nbytes} bytes do not fit a pool of {self.nbytes}: raise "
                               "memory_pool_size")
        allocator = self._allocator
        until = time.monotonic() + wait
        while True:
            try:
                return ManagedBuffer(allocator, allocator.alloc(nbytes), nbytes, self.tensor)
            except MemoryError:
                if not self._wait_for_room(until):
                    raise PoolFull(self._why_full(nbytes, wait)) from None

    def _wait_for_room(self, until: float) -> bool:
        """Returns soon after something was freed; False: the time is over. A free that comes
        between the failed try and the wait is found by the next try, 50 ms later."""
        left = until - time.monotonic()
        if left <= 0:
            return False
        with self._allocator.room:
            self._allocator.room.wait(min(left, 0.05))
        return True

    def _why_full(self, nbytes: int, wait: float) -> str:
        return (f"no {nbytes} bytes in a row in the pool after {wait:g} s: {self.used} of "
                f"{self.nbytes} bytes in {self.buffers} buffers are used by what was put and not "
                "fetched yet, and by what was got and not released: raise memory_pool_size, or "
                "look for a stage that does not fetch (health())")

    def owns(self, buffer: ManagedBuffer) -> bool:
        return buffer.allocator is self._allocator

    def view(self, buffer: ManagedBuffer) -> memoryview:
        """The bytes of a buffer, to be read or written."""
        return self._bytes[buffer.offset:buffer.offset + buffer.size]

    def pin(self, buffer: ManagedBuffer) -> None:
        """From here to ``unpin`` its bytes are not handed out again, even when it is released."""
        self._allocator.pin(buffer.offset)

    def unpin(self, buffer: ManagedBuffer) -> None:
        self._allocator.unpin(buffer.offset)

    @property
    def used(self) -> int:
        return self._allocator.used

    @property
    def buffers(self) -> int:
        return self._allocator.buffers

    def close(self) -> None:
        """The memory itself goes with the last tensor or buffer that refers to it."""
        if self._pinned_host:
            cuda: Any = torch.cuda
            cuda.cudart().cudaHostUnregister(self.tensor.data_ptr())
            self._pinned_host = False


def _aligned(nbytes: int) -> int:
    return (nbytes + _ALIGN - 1) // _ALIGN * _ALIGN


def _pin_for_gpu(tensor: torch.Tensor) -> bool:
    """Makes copies between GPUs and the pool as fast as pinned memory: the driver is told of it.
    Only where this process uses a GPU already: asking would make a GPU context."""
    cuda: Any = torch.cuda
    if not (cuda.is_available() and cuda.is_initialized()):
        return False
    return int(cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0)) == 0


def copy_in(pool: Pool, buffer: ManagedBuffer, data: Any) -> None:
    """Copies a tensor (any device) or bytes into a buffer of exactly its size. Returns when the
    bytes are there."""
    if not isinstance(data, torch.Tensor):
        pool.view(buffer)[:] = data
        return
    source = data.detach().contiguous().view(-1).view(torch.uint8)
    buffer.tensor.copy_(source)


def as_bytes(data: torch.Tensor) -> Optional[bytes]:
    """The bytes of a CPU tensor; None for one of a device."""
    if data.device.type != "cpu":
        return None
    flat: torch.Tensor = data.detach().contiguous().view(-1).view(torch.uint8)
    return bytes(flat.numpy())
