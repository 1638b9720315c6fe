"""A proxy in front of a prefill and a decode engine, in the formats of vLLM's example for MoRI-IO.

	python proxy.py --port 10001 --discovery-port 36367 [--forget-after SECONDS]

Engines register by ZeroMQ (DEALER to ROUTER, a msgpack map every few seconds); the proxy embeds
both zmq addresses in the request id and fills kv_transfer_params. Unlike the example it forgets
engines that it does not hear of any more, and hands a prefill engine's refusal to the client.
One asyncio thread. GET /instances tells who is registered.
"""

import argparse
import asyncio
import itertools
import time
import uuid
from typing import Any, Dict, List, Optional

import aiohttp
import msgspec
import zmq
import zmq.asyncio
from aiohttp import web

NEEDED = {"http_address", "zmq_address", "dp_size", "tp_size", "transfer_mode"}
UNAVAILABLE = "no prefill or no decode engine is registered"


class Proxy:
    """Who is registered, and how a request passes through both."""

    def __init__(self, forget_after: float):
        self.forget_after = forget_after
        self.engines: Dict[str, Dict[str, Dict[str, Any]]] = {"P": {}, "D": {}}
        self.mode = ""
        self.turn = itertools.count()
        self.http: Optional[aiohttp.ClientSession] = None

    def register(self, message: Dict[str, Any]) -> None:
        kind = message.get("type")
        if kind not in self.engines or not NEEDED <= message.keys():
            return
        self.mode = self.mode or str(message["transfer_mode"])
        if message["transfer_mode"] != self.mode:
            print(f"not {self.mode}, as others are: {message}", flush=True)
            return
        address = str(message["http_address"])
        if address not in self.engines[kind]:
            print(f"registered {kind} {message}", flush=True)
        self.engines[kind][address] = dict(message, seen=time.monotonic())

    def known(self, kind: str) -> List[Dict[str, Any]]:
        oldest = time.monotonic() - self.forget_after
        return [e for e in self.engines[kind].values() if e["seen"] >= oldest]

    async def listen(self, port: int) -> None:
        socket = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        socket.bind(f"tcp://*:{port}")
        while True:
            frames = await socket.recv_multipart()
            try:
                self.register(msgspec.msgpack.decode(frames[-1]))
            except (msgspec.DecodeError, AttributeError) as error:
                print(f"not a registration: {error}", flush=True)

    async def instances(self, _request: web.Request) -> web.Response:
        return web.json_response({"mode": self.mode, "P": self.known("P"), "D": self.known("D")})

    async def post(self, engine: Dict[str, Any], path: str, body: Dict[str, Any],
                   request_id: str) -> aiohttp.ClientResponse:
        assert self.http is not None
        return await self.http.post(f"http://{engine['http_address']}{path}", json=body,
                                    headers={"X-Request-Id": request_id})

    async def prefill(self, engine: Dict[str, Any], path: str, body: Dict[str, Any],
                      request_id: str) -> Dict[str, Any]:
        body = dict(body, stream=False, max_tokens=1)
        if "max_completion_tokens" in body:
            body["max_completion_tokens"] = 1
        body.pop("stream_options", None)
        answer = await self.post(engine, path, body, request_id)
        async with answer:
            if answer.status != 200:
                raise web.HTTPBadGateway(text=f"prefill: {answer.status} {await answer.text()}")
            return dict(await answer.json())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prefills, decodes = self.known("P"), self.known("D")
        if not prefills or not decodes:
            raise web.HTTPServiceUnavailable(text=UNAVAILABLE)
        turn = next(self.turn)
        p, d = prefills[turn % len(prefills)], decodes[turn % len(decodes)]
        request_id = (f"___prefill_addr_{p['zmq_address']}___decode_addr_{d['zmq_address']}"
                      f"_{uuid.uuid4().hex}")
        transfer_id = f"tx-{uuid.uuid4()}"
        sizes = {"remote_dp_size": d["dp_size"], "remote_tp_size": d["tp_size"]}
        send = dict(sizes, transfer_id=transfer_id, do_remote_decode=True, do_remote_prefill=False,
                    remote_engine_id=None, remote_block_ids=None)
        first = asyncio.ensure_future(self.prefill(
            p, request.path, dict(body, kv_transfer_params=send), request_id))
        params = {"do_remote_decode": False, "do_remote_prefill": True, "remote_engine_id": None,
                  "remote_block_ids": None, "transfer_id": transfer_id,
                  "remote_dp_size": p["dp_size"], "remote_tp_size": p["tp_size"]}
        try:
            if self.mode == "READ":
                answered = (await first)["kv_transfer_params"]
                for key in ("remote_engine_id", "remote_block_ids", "transfer_id"):
                    params[key] = answered[key]
            body = dict(body, max_tokens=body["max_tokens"] - 1, kv_transfer_params=params)
            return await self.decode(request, d, body, request_id, first)
        finally:
            if not first.done() and request.transport is None:
                first.cancel()  # the client is gone: let the prefill engine know, too
            first.add_done_callback(lambda f: f.cancelled() or f.exception())

    async def decode(self, request: web.Request, engine: Dict[str, Any], body: Dict[str, Any],
                     request_id: str, first: "asyncio.Future[Any]") -> web.StreamResponse:
        """The answer of the decode engine; hangs up on it when the prefill fails."""
        asked = asyncio.ensure_future(self.post(engine, request.path, body, request_id))
        first.add_done_callback(lambda f: f.cancelled() or f.exception() and asked.cancel())
        try:
            answer = await asked
        except asyncio.CancelledError:
            if first.done() and not first.cancelled() and first.exception():
                raise web.HTTPBadGateway(text=f"prefill: {first.exception()}") from None
            raise
        async with answer:
            out = web.StreamResponse(status=answer.status, headers={
                "Content-Type": answer.headers.get("Content-Type", "application/json")})
            await out.prepare(request)
            async for chunk in answer.content.iter_any():
                await out.write(chunk)
            await out.write_eof()
            return out


async def serve(port: int, discovery_port: int, forget_after: float) -> None:
    proxy = Proxy(forget_after)
    timeout = aiohttp.ClientTimeout(total=None, connect=5)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        proxy.http = http
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/completions", proxy.handle)
        app.router.add_post("/v1/chat/completions", proxy.handle)
        app.router.add_get("/instances", proxy.instances)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await proxy.listen(discovery_port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=10001)
    parser.add_argument("--discovery-port", type=int, default=36367)
    parser.add_argument("--forget-after", type=float, default=15.0)
    args = parser.parse_args()
    asyncio.run(serve(args.port, args.discovery_port, args.forget_after))


if __name__ == "__main__":
    main()
