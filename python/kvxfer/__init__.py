"""kvxfer: move KV-cache blocks between LLM serving engines through the node's kvxferd.

An engine opens a :class:`Client`, makes a :class:`Region` of the :class:`Memory` its KV cache lies
in, hands the region's descriptor to other engines by whatever channel it has, makes an
:class:`Import` of each descriptor it is given, and submits transfers between the two. What becomes
of a :class:`Transfer` is told by its terminal :class:`Event`.

Offsets, lengths and strides are bytes; times are seconds, but event times, which are nanoseconds of
CLOCK_MONOTONIC. Every failure is a :class:`KvxferError`. Calls that block release the GIL.

Modules: ``client``, ``region``, ``transfer``, ``wait``, ``events``, ``layout``, ``errors``,
``aio``.
"""

from . import aio, errors, layout
from ._native import lib as _lib
from .client import Client, Limits
from .errors import KvxferError, Scope, Status
from .events import Event, EventType, Op
from .layout import Layout, Plane
from .region import Import, Memory, Region
from .transfer import Blocks, Ops, Slice, Transfer
from .wait import EventPool, Wait

__all__ = [
    "Blocks", "Client", "Event", "EventPool", "EventType", "Import", "KvxferError", "Layout", "Limits",
    "Memory", "Op", "Ops", "Plane", "Region", "Scope", "Slice", "Status", "Transfer", "Wait",
    "aio", "errors", "layout",
]

#: Version of the client library inside, "0.1.0".
__version__ = errors.string(_lib.kvxfer_version())
#: Longest payload and longest message, in bytes.
PAYLOAD_MAX = int(_lib.KVXFER_PAYLOAD_MAX)
#: Longest descriptor, in bytes.
DESCRIPTOR_MAX = int(_lib.KVXFER_DESCRIPTOR_MAX)

del _lib
