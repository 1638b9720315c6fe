"""The HTTP server of a prefill engine at which decode engines learn where its ranks are.

SGLang's own, plus what kvxfer needs to reach a rank: the engine's name and the address of each
rank's daemon. Runs in a thread of its own (aiohttp), started by SGLang in the engine's main
process.
"""

import json
from typing import Any, Dict, Mapping, Optional, Tuple

from aiohttp import web
from sglang.srt.disaggregation.common.conn import CommonKVBootstrapServer

from ..pd import Endpoint

__all__ = ["KvxferKVBootstrapServer", "endpoint_of"]

_KEY = "kvxfer"


class KvxferKVBootstrapServer(CommonKVBootstrapServer):
    """``PUT /route`` takes and ``GET /route`` gives one word more than SGLang's: "kvxfer"."""

    def __init__(self, host: str, port: int) -> None:
        #: (dp, cp) -> (pp, tp) -> what the rank said of itself
        self._contacts: Dict[Tuple[int, int], Dict[Tuple[int, int], Mapping[str, str]]] = {}
        super().__init__(host, port)

    async def _handle_route_put(self, request: web.Request) -> web.Response:
        answer: web.Response = await super()._handle_route_put(request)
        said = await request.json()
        if answer.status == 200 and _KEY in said:
            dp = said["attn_dp_rank"] if said["system_dp_size"] == 1 else said["system_dp_rank"]
            ranks = self._contacts.setdefault((int(dp), int(said["attn_cp_rank"])), {})
            ranks[int(said["pp_rank"]), int(said["attn_tp_rank"])] = said[_KEY]
        return answer

    async def _handle_route_get(self, request: web.Request) -> web.Response:
        answer: web.Response = await super()._handle_route_get(request)
        dp, cp = request.query.get("prefill_dp_rank"), request.query.get("prefill_cp_rank")
        ranks = self._contacts.get((int(dp or -1), int(cp or -1)))
        if answer.status != 200 or not ranks:
            return answer
        body = json.loads(answer.text or "{}")
        body[_KEY] = {
            "engine": next(iter(ranks.values()))["engine"],
            "addresses": [[pp, tp, said["address"]] for (pp, tp), said in sorted(ranks.items())],
            "tp_size": self.attn_tp_size,
            "pp_size": self.pp_size,
        }
        return web.json_response(body)


def endpoint_of(info: Mapping[str, Any], dp: int) -> Optional[Endpoint]:
    """The engine that an answer of ``GET /route`` speaks of. None: it does not run kvxfer."""
    said = info.get(_KEY)
    if not said:
        return None
    addresses = {(int(pp), int(tp)): str(address) for pp, tp, address in said["addresses"]}
    return Endpoint(next(iter(addresses.values())), str(said["engine"]), dp, int(said["tp_size"]),
                    int(said["pp_size"]), addresses)
