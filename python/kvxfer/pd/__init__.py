"""``kvxfer.pd``: prefill on one engine, decode on another. What the connectors share.

A :class:`Rank` per worker process publishes the rank's KV memory (a :class:`Pool`) at the node's
daemon, finds the ranks of other engines by name, and moves the KV of requests between them:
streamed by the prefill side as it is computed (``offer`` and ``expect``), or read by the decode
side afterwards (``hold`` and ``fetch``). The two sides may split heads and layers differently. What
becomes of each request is told once, by an :class:`Outcome`, on both sides, after which its blocks
are free.

    prefill = pd.Rank("prefill-0")
    prefill.serve(pd.Pool.of(groups, planes))
    offer = prefill.offer("request-7", deadline=60)
    for layer in range(n_layers):
        ...                                        # computes the layer
        offer.add(0, 0, block_ids, layers=range(layer, layer + 1))
    offer.seal()

    decode.expect("request-7", pd.Endpoint(address, "prefill-0"), {0: (0, own_blocks)}, deadline=60)
    for outcome in decode.finished(): ...          # at every step
"""

from .expect import Expect
from .fetch import Fetch
from .geometry import Endpoint, Geometry, Group, Part, rank_name
from .hold import Hold
from .offer import Offer
from .pool import Pool, memory_of, to_shared
from .rank import Rank
from .rendezvous import Outcome

__all__ = [
    "Endpoint", "Expect", "Fetch", "Geometry", "Group", "Hold", "Offer", "Outcome", "Part", "Pool",
    "Rank", "memory_of", "rank_name", "to_shared",
]
