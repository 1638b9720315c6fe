"""The memory that vLLM's KV cache lies in, as kvxfer.Memory.

On the CPU the cache is allocated in shared memory from the start: vLLM asks the connector for a
context to allocate it in, and while that is active torch.zeros and torch.empty of bytes give
kvxfer's memory. All tensors that vLLM makes of it later are views of it. Tensors that came about
otherwise are moved, which reaches only the tensors that we are given.
"""

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

import torch
from torch.overrides import TorchFunctionMode

from ..pd import memory_of
from ..region import Memory

__all__ = ["SharedAllocation", "memories_of"]

_BYTES = (torch.int8, torch.uint8)


class SharedAllocation(TorchFunctionMode):
    """While active, one-dimensional CPU tensors of bytes are made in shared memory (zeroed)."""

    def __init__(self) -> None:
        super().__init__()
        self.memories: List[Memory] = []

    def __torch_function__(self, func: Any, types: Any, args: Tuple[Any, ...] = (),
                           kwargs: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.zeros, torch.empty):
            n = _bytes_asked(args, kwargs)
            if n > 0:
                self.memories.append(Memory(n, name="kvxfer-vllm"))
                return self.memories[-1].torch(kwargs["dtype"], n)
        return func(*args, **kwargs)


def _bytes_asked(args: Tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The length that torch.zeros(...) asks for; 0: not a plain tensor of bytes on the CPU."""
    device = kwargs.get("device")
    if kwargs.get("dtype") not in _BYTES or device is None or torch.device(device).type != "cpu":
        return 0
    size = args[0] if args else kwargs.get("size")
    if isinstance(size, (tuple, list, torch.Size)):
        size = size[0] if len(size) == 1 else None
    return size if isinstance(size, int) and len(args) <= 1 else 0


def memories_of(tensors: Mapping[str, torch.Tensor],
                allocated: List[Memory]) -> Dict[str, Memory]:
    """The memory that each tensor lies in: one of ``allocated``, or one that is made of the tensors
    (``pd.memory_of``: a GPU's as they are, the CPU's moved). The one place where it is decided as
    what kind of memory the KV cache is registered. Raises NoMemory, Unsupported and what else
    memory of a GPU can raise."""
    found: Dict[str, Memory] = {}
    strangers: Dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        memory = _memory_at(tensor, allocated)
        if memory is None:
            strangers[name] = tensor
        else:
            found[name] = memory
    if strangers:
        made = memory_of(strangers.values(), name="kvxfer-vllm")
        found.update((name, made) for name in strangers)
    return found


def _memory_at(tensor: torch.Tensor, memories: List[Memory]) -> Optional[Memory]:
    address = tensor.data_ptr() if tensor.device.type == "cpu" else 0
    for memory in memories:
        if memory.address <= address < memory.address + memory.nbytes:
            return memory
    return None
