"""Clients: requests through the proxy, or to the two engines one by one as a proxy sends them."""

import asyncio
import json
import random
import time
import uuid
from typing import (Any, Awaitable, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence,
                    Tuple)

import aiohttp

from engine import BLOCK, SERVED
from models import FIRST_ID, LAST_ID

Prompt = Tuple[int, ...]


class Answer(NamedTuple):
    """What became of one request. tokens: as far as they came."""

    tokens: Tuple[int, ...]
    error: str = ""
    first_s: float = 0.0  # to the first token (streaming only)
    total_s: float = 0.0
    params: Optional[Mapping[str, Any]] = None  # kv_transfer_params of the answer
    reason: str = ""  # finish_reason


def prompts(count: int, seed: int = 1, longest: int = 900, shared: int = 0) -> List[Prompt]:
    """Token ids, the same for the same seed. Lengths: block borders and their neighbours first,
    then any; the first `shared` tokens are the same in every second one (prefix hits)."""
    dice = random.Random(seed)
    edges = [n for n in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 4 * BLOCK + 1, 8 * BLOCK)
             if n <= longest]
    head = tuple(dice.randint(FIRST_ID, LAST_ID) for _ in range(shared))
    made = []
    for i in range(count):
        length = edges[i] if i < len(edges) else dice.randint(1, longest)
        body = tuple(dice.randint(FIRST_ID, LAST_ID) for _ in range(length))
        made.append(head + body if i % 2 else body)
    return made


def prompts_of(count: int, seed: int, length: int) -> List[Prompt]:
    """As many prompts of just this length."""
    dice = random.Random(seed)
    return [tuple(dice.randint(FIRST_ID, LAST_ID) for _ in range(length)) for _ in range(count)]


def body_of(prompt: Prompt, tokens: int, **more: Any) -> Dict[str, Any]:
    return dict({"model": SERVED, "prompt": list(prompt), "max_tokens": tokens, "temperature": 0,
                 "ignore_eos": True, "return_token_ids": True}, **more)


async def read_stream(answer: aiohttp.ClientResponse, begin: float) -> Answer:
    tokens: List[int] = []
    first, reason, error = 0.0, "", ""
    async for line in answer.content:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        part = json.loads(line[6:])
        if "error" in part:
            error = json.dumps(part["error"])
            continue
        choice = part["choices"][0]
        tokens += choice.get("token_ids") or []
        if tokens and not first:
            first = time.monotonic() - begin
        reason = choice.get("finish_reason") or reason
    return Answer(tuple(tokens), error, first, time.monotonic() - begin, None, reason)


async def ask(http: aiohttp.ClientSession, url: str, body: Mapping[str, Any],
              request_id: Optional[str] = None) -> Answer:
    """One completion; an Answer in every case but cancellation, which closes the connection."""
    begin = time.monotonic()
    headers = {"X-Request-Id": request_id} if request_id else {}
    try:
        async with http.post(f"{url}/v1/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                return Answer((), f"{answer.status} {(await answer.text())[:500]}",
                              total_s=time.monotonic() - begin)
            if body.get("stream"):
                return await read_stream(answer, begin)
            whole = await answer.json()
            choice = whole["choices"][0]
            return Answer(tuple(choice["token_ids"]), "", 0.0, time.monotonic() - begin,
                          whole.get("kv_transfer_params"), choice.get("finish_reason") or "")
    except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError) as error:
        return Answer((), f"{type(error).__name__}: {error}", total_s=time.monotonic() - begin)


def session(timeout: float = 120.0) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout),
                                 connector=aiohttp.TCPConnector(limit=0))


async def ask_all(url: str, bodies: Sequence[Mapping[str, Any]], at_once: int = 8,
                  timeout: float = 120.0) -> List[Answer]:
    """All of them, `at_once` at a time, answers in order."""
    gate = asyncio.Semaphore(at_once)

    async def one(http: aiohttp.ClientSession, body: Mapping[str, Any]) -> Answer:
        async with gate:
            return await ask(http, url, body)

    async with session(timeout) as http:
        return list(await asyncio.gather(*(one(http, body) for body in bodies)))


def run(url: str, wanted: Sequence[Prompt], tokens: int, at_once: int = 8, timeout: float = 120.0,
        **more: Any) -> List[Answer]:
    """Blocks until every prompt has been answered."""
    return asyncio.run(ask_all(url, [body_of(p, tokens, **more) for p in wanted], at_once, timeout))


class Pair:
    """The two halves of one disaggregated request, sent as a proxy sends them, but one by one:
    tests leave one out, or hang up in the middle."""

    def __init__(self, p: Mapping[str, Any], d: Mapping[str, Any], prompt: Prompt, tokens: int):
        self.p, self.d, self.prompt, self.tokens = p, d, prompt, tokens
        self.id = (f"___prefill_addr_{p['zmq_address']}___decode_addr_{d['zmq_address']}"
                   f"_{uuid.uuid4().hex}")
        self.transfer = f"tx-{uuid.uuid4()}"

    async def prefill(self, http: aiohttp.ClientSession) -> Answer:
        params = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
                  "remote_block_ids": None, "transfer_id": self.transfer,
                  "remote_dp_size": self.d["dp_size"], "remote_tp_size": self.d["tp_size"]}
        return await ask(http, f"http://{self.p['http_address']}",
                         body_of(self.prompt, 1, kv_transfer_params=params), self.id)

    async def decode(self, http: aiohttp.ClientSession,
                     answered: Optional[Mapping[str, Any]] = None, **more: Any) -> Answer:
        """answered: kv_transfer_params of prefill's answer (READ)."""
        params = {"do_remote_decode": False, "do_remote_prefill": True, "remote_engine_id": None,
                  "remote_block_ids": None, "transfer_id": self.transfer,
                  "remote_dp_size": self.p["dp_size"], "remote_tp_size": self.p["tp_size"]}
        for key in ("remote_engine_id", "remote_block_ids", "transfer_id"):
            if answered:
                params[key] = answered[key]
        return await ask(http, f"http://{self.d['http_address']}",
                         body_of(self.prompt, self.tokens, kv_transfer_params=params, **more),
                         self.id)

    async def both(self, http: aiohttp.ClientSession, mode: str) -> Tuple[Answer, Answer]:
        if mode == "READ":
            first = await self.prefill(http)
            if first.error:
                return first, first
            return first, await self.decode(http, first.params)
        done = await asyncio.gather(self.prefill(http), self.decode(http))
        return done[0], done[1]


async def hang_up(what: Awaitable[Answer], when: Callable[[], bool], every: float = 0.002,
                  longest: float = 30.0) -> bool:
    """Starts a request and closes its connection once when() says so; whether it was still open."""
    sent = asyncio.ensure_future(what)
    end = time.monotonic() + longest
    while not sent.done() and not when() and time.monotonic() < end:
        await asyncio.sleep(every)
    if sent.done():
        return False
    sent.cancel()
    try:
        await sent
    except asyncio.CancelledError:
        pass
    return True
