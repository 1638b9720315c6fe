"""What goes wrong in a deployment, one thing at a time. After each: neither side holds a block, the
survivor heard within its bound, and the next requests give the right tokens."""

import asyncio
import time
from typing import Any, Awaitable, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

import traffic
from conftest import Truth
from deployment import Deployment
from engine import Engine
from processes import wait_until

TOKENS = 8
EXPIRY_S = 6.0  # of a transfer whose other side never comes; from the configuration below
HEAR_S = 8.0  # an engine or a daemon was killed: everybody else is done with it
CONFIG = {"transfer_timeout": EXPIRY_S, "defer_timeout": EXPIRY_S, "recv_abort_timeout": EXPIRY_S}
SMALL_STEPS = ["--max-num-batched-tokens", "128", "--enable-chunked-prefill",
               "--no-enable-prefix-caching"]
LONG = 1900

CASES: Dict[str, Dict[str, Any]] = {
    "write": {"mode": "WRITE"},
    "write-two-nodes": {"mode": "WRITE", "nodes": 2},
    "read-two-nodes": {"mode": "READ", "nodes": 2},
}
pytestmark = pytest.mark.parametrize(
    "deployment", [pytest.param(dict(options, model="llama-long", more=SMALL_STEPS, config=CONFIG),
                                id=name) for name, options in CASES.items()], indirect=True)


@pytest.fixture(autouse=True)
def sound_after(deployment: Deployment, truth: Truth) -> Iterator[None]:
    """The verdict on every test here."""
    yield
    try:
        deployment.wait_idle(2 * EXPIRY_S + HEAR_S)
        serves(deployment, truth)
        deployment.wait_idle()
    except AssertionError as error:
        raise AssertionError(f"{error}\n{deployment.logs()}") from None


def serves(deployment: Deployment, truth: Truth) -> None:
    """Ten requests through the proxy, tokens as one engine's."""
    deployment.wait_registered()
    wanted = traffic.prompts(10, seed=77, longest=700)
    right = truth.of(deployment.model, wanted, TOKENS)
    answers = traffic.run(deployment.url, wanted, TOKENS + 1, timeout=60)
    assert [a.tokens for a in answers] == right, [a.error for a in answers]


def ends(deployment: Deployment) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    known = deployment.instances()
    return known["P"][-1], known["D"][-1]


def pairs(deployment: Deployment, count: int, seed: int, length: int = LONG,
          tokens: int = TOKENS) -> List[traffic.Pair]:
    """`count` requests of `length` prompt tokens, not sent yet."""
    p, d = ends(deployment)
    return [traffic.Pair(p, d, prompt, tokens)
            for prompt in traffic.prompts_of(count, seed, length)]


def gauge(engine: Engine, name: str) -> float:
    return engine.metrics()[f"vllm:{name}"]


def busy(engine: Engine) -> bool:
    return gauge(engine, "num_requests_running") + gauge(engine, "num_requests_waiting") > 0


async def first_of(half: Callable[[Any], Awaitable[traffic.Answer]]) -> traffic.Answer:
    """One half of a pair, in a session of its own."""
    async with traffic.session(60) as http:
        return await half(http)


# --- the client hangs up


def test_decode_is_aborted_while_it_waits_for_its_kv(deployment: Deployment) -> None:
    if deployment.mode == "READ":
        pytest.skip("in READ the decode engine is asked when the KV is there")
    pair = pairs(deployment, 1, seed=10)[0]

    async def scene() -> bool:
        async with traffic.session() as http:
            return await traffic.hang_up(pair.decode(http), lambda: busy(deployment.decode), 0.05)
    assert asyncio.run(scene()), "the request had ended before the client hung up"
    took = deployment.decode.wait_idle(HEAR_S)
    print(f"decode idle {took:.2f} s after the abort")


def test_prefill_is_aborted_in_the_middle(deployment: Deployment) -> None:
    """Both sides were asked; the client of the prefill half goes away while chunks are computed."""
    pair = pairs(deployment, 1, seed=11)[0]

    async def scene() -> Tuple[bool, Optional[traffic.Answer]]:
        async with traffic.session() as http:
            waiting = None
            if deployment.mode == "WRITE":
                waiting = asyncio.ensure_future(pair.decode(http))
                await asyncio.sleep(0.3)
            begin = time.monotonic()
            cut = await traffic.hang_up(pair.prefill(http), lambda: busy(deployment.prefill), 0.002)
            answer = await waiting if waiting else None
            print(f"decode answered {time.monotonic() - begin:.2f} s after")
            return cut, answer
    cut, answer = asyncio.run(scene())
    assert cut, "the prefill had ended before the client hung up"
    if answer is not None:
        assert answer.error or answer.reason == "error" or len(answer.tokens) == TOKENS, answer


@pytest.mark.parametrize("after_ms", [0, 5, 20, 60, 150])
def test_both_are_aborted(deployment: Deployment, after_ms: int) -> None:
    """At several moments: before, in and after the transfer."""
    several = pairs(deployment, 6, seed=12 + after_ms, length=800)

    async def scene() -> None:
        async with traffic.session() as http:
            sent = [asyncio.ensure_future(pair.both(http, deployment.mode)) for pair in several]
            await asyncio.sleep(after_ms / 1000)
            for one in sent:
                one.cancel()
            await asyncio.gather(*sent, return_exceptions=True)
    asyncio.run(scene())


def test_decode_is_aborted_while_it_decodes(deployment: Deployment) -> None:
    pair = pairs(deployment, 1, seed=13, length=300, tokens=1500)[0]

    async def scene() -> bool:
        async with traffic.session() as http:
            first = asyncio.ensure_future(pair.prefill(http))
            params = (await first).params if deployment.mode == "READ" else None
            cut = await traffic.hang_up(pair.decode(http, params), lambda: gauge(
                deployment.decode, "num_requests_running") > 0, 0.02)
            await first
            return cut
    assert asyncio.run(scene())
    deployment.decode.wait_idle(HEAR_S)


def test_clients_that_hang_up_at_any_time(deployment: Deployment) -> None:
    """Forty through the proxy, each cut between 0 and 800 ms."""
    prompts = traffic.prompts(40, seed=14, longest=600)

    async def one(http: Any, prompt: traffic.Prompt, number: int) -> None:
        body = traffic.body_of(prompt, TOKENS)
        sent = asyncio.ensure_future(traffic.ask(http, deployment.url, body))
        await asyncio.wait([sent], timeout=0.02 * number)
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)

    async def scene() -> None:
        async with traffic.session() as http:
            await asyncio.gather(*(one(http, p, i) for i, p in enumerate(prompts)))
    asyncio.run(scene())


# --- one half never comes


def test_decode_never_comes(deployment: Deployment) -> None:
    """The prefill engine gives its blocks back when the time is over, and not before."""
    pair = pairs(deployment, 1, seed=20, length=500)[0]
    answer = asyncio.run(first_of(pair.prefill))
    assert not answer.error, answer
    assert gauge(deployment.prefill, "kv_cache_usage_perc") > 0, "blocks were given back at once"
    took = deployment.prefill.wait_idle(EXPIRY_S + HEAR_S)
    print(f"prefill idle {took:.2f} s after its answer")
    assert took > EXPIRY_S / 2


def test_decode_comes_too_late(deployment: Deployment, truth: Truth) -> None:
    """After expiry the decode engine is told, and says so or computes the prompt itself."""
    if deployment.mode != "READ":
        pytest.skip("in WRITE the decode engine asks first")
    pair = pairs(deployment, 1, seed=21, length=500)[0]

    async def scene() -> traffic.Answer:
        async with traffic.session() as http:
            first = await pair.prefill(http)
            await asyncio.to_thread(deployment.prefill.wait_idle, EXPIRY_S + HEAR_S)
            return await pair.decode(http, first.params)
    begin = time.monotonic()
    answer = asyncio.run(scene())
    print(f"{time.monotonic() - begin:.2f} s: {answer.error or answer.reason}")
    right = truth.of(deployment.model, [pair.prompt], TOKENS)[0]
    assert answer.error or answer.reason == "error" or answer.tokens == right


def test_prefill_never_comes(deployment: Deployment) -> None:
    if deployment.mode == "READ":
        pytest.skip("in READ the decode engine is asked after the prefill")
    pair = pairs(deployment, 1, seed=22, length=500)[0]
    begin = time.monotonic()
    answer = asyncio.run(first_of(pair.decode))
    took = time.monotonic() - begin
    print(f"{took:.2f} s: {answer.error or answer.reason}")
    assert took < EXPIRY_S + HEAR_S


# --- somebody dies


def storm(deployment: Deployment, victim: Any, seed: int) -> List[Tuple[traffic.Answer, float]]:
    """Sixteen long requests; kills the victim when both engines are at work; each answer and how
    long after that it came."""
    several = pairs(deployment, 16, seed=seed, length=LONG, tokens=64)

    async def one(http: Any, pair: traffic.Pair) -> Tuple[traffic.Answer, float]:
        answer = (await pair.both(http, deployment.mode))[1]
        return answer, time.monotonic()

    async def scene() -> List[Tuple[traffic.Answer, float]]:
        async with traffic.session(60) as http:
            sent = [asyncio.ensure_future(one(http, pair)) for pair in several]
            await asyncio.to_thread(wait_until, "the storm", 30, lambda: gauge(
                deployment.prefill, "num_requests_running") > 0, 0.01)
            await asyncio.sleep(0.3)
            assert not all(s.done() for s in sent), "all requests had ended before the kill"
            await asyncio.to_thread(victim.kill)
            begin = time.monotonic()
            return [(answer, max(0.0, end - begin)) for answer, end in await asyncio.gather(*sent)]
    return asyncio.run(scene())


def report(what: str, answers: List[Tuple[traffic.Answer, float]]) -> None:
    good = sum(1 for a, _ in answers if not a.error and a.reason != "error")
    last = max(seconds for _, seconds in answers)
    print(f"{what}: {good} of {len(answers)} answered, the last end {last:.2f} s after")


def test_prefill_engine_is_killed(deployment: Deployment) -> None:
    answers = storm(deployment, deployment.prefill, seed=30)
    report("prefill killed", answers)
    assert deployment.decode.healthy()
    deployment.decode.wait_idle(HEAR_S + 20)
    deployment.prefill.restart()
    assert max(t for _, t in answers) < EXPIRY_S + HEAR_S + 20


def test_decode_engine_is_killed(deployment: Deployment) -> None:
    answers = storm(deployment, deployment.decode, seed=31)
    report("decode killed", answers)
    assert deployment.prefill.healthy()
    took = deployment.prefill.wait_idle(EXPIRY_S + HEAR_S)
    print(f"prefill idle {took:.2f} s later")
    deployment.decode.restart()


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_daemon_is_killed_and_comes_back(deployment: Deployment, side: str) -> None:
    node = deployment.nodes[0 if side == "prefill" else -1]
    if side == "decode" and len(deployment.nodes) == 1:
        pytest.skip("one node: the same daemon")
    answers = storm(deployment, node, seed=32 + len(side))
    report(f"daemon of {side} killed", answers)
    assert all(engine.healthy() for engine in deployment.engines)
    for engine in deployment.engines:
        engine.wait_idle(EXPIRY_S + HEAR_S)
    node.restart()
    regions = sum(e.process.alive() for e in deployment.engines) // len(deployment.nodes)
    took = wait_until("the engines' memory is registered again", 30,
                      lambda: len(node.regions()) >= regions)
    print(f"memory registered again {took:.2f} s after the restart")


def test_daemon_is_restarted_in_good_order(deployment: Deployment) -> None:
    """Nothing runs meanwhile; engines come back by themselves."""
    node = deployment.nodes[0]
    node.daemon.stop()
    node.restart()
    wait_until("memory is registered again", 30, lambda: len(node.regions()) >= 1)


# --- many


def test_many_at_once(deployment: Deployment, truth: Truth) -> None:
    """250 requests at the same moment, more than fit into the KV cache at once."""
    wanted = traffic.prompts(250, seed=40, longest=400)
    right = truth.of(deployment.model, wanted, TOKENS)
    begin = time.monotonic()
    answers = traffic.run(deployment.url, wanted, TOKENS + 1, at_once=250, timeout=240)
    print(f"{time.monotonic() - begin:.1f} s")
    wrong = [(i, a.error) for i, a in enumerate(answers) if a.tokens != right[i]]
    assert not wrong, f"{len(wrong)}: {wrong[:3]}"
