"""Prefill and decode servers: the tokens of one server, prompt by prompt, and what a user sees when
things break."""

import concurrent.futures
import itertools
import threading
import time

import pytest

pytest.importorskip("sglang", reason="needs sglang (install.sh)")

import servers  # noqa: E402

rooms = itertools.count(10_000)
LAYOUTS = {
    "plain": ((), ()),
    "pages-and-chunks": (
        ("--page-size", "16", "--chunked-prefill-size", "64"),
        ("--page-size", "16"),
    ),
    "decode-radix-cache": (
        ("--page-size", "16", "--chunked-prefill-size", "64"),
        ("--page-size", "16", "--disaggregation-decode-enable-radix-cache"),
    ),
    "tp2-to-tp1": (("--tp-size", "2"), ()),
    "tp1-to-tp2": ((), ("--tp-size", "2")),
}


@pytest.fixture(scope="module", params=list(LAYOUTS))
def deployment(request, model, reference, tmp_path_factory):
    prefill, decode = LAYOUTS[request.param]
    made = servers.Deployment(
        tmp_path_factory.mktemp(request.param), model, prefill=prefill, decode=decode
    )
    yield made
    made.stop()


def test_tokens_are_those_of_one_server(deployment, reference):
    for ids, want in reference:
        assert deployment.generate(ids, next(rooms))[1]["output_ids"] == want


def test_tokens_with_requests_side_by_side(deployment, reference):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: deployment.generate(one[0], next(rooms))[1], reference))
    assert [answer["output_ids"] for answer in answers] == [want for _, want in reference]


def test_prefixes_that_decode_holds(deployment, reference):
    """Prompts again, and with more behind them: with a radix cache decode asks for the rest."""
    for ids, want in reference[:6]:
        longer = ids + want[:8]
        for prompt in (ids, longer):
            answer = deployment.generate(prompt, next(rooms))[1]
            assert "output_ids" in answer, answer
        assert deployment.generate(longer, next(rooms))[1]["output_ids"][:4] == want[8:12]


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_abort_frees_both_sides(deployment, reference, side):
    """Aborted at some time; afterwards everything still works, and no transfer is left."""
    ids = reference[3][0] * 3
    for delay in (0.0, 0.02, 0.1):
        rid = f"abort-{side}-{delay}"
        thread = threading.Thread(
            target=deployment.generate, args=(ids[:600], next(rooms), 200), kwargs={"rid": rid}
        )
        thread.start()
        time.sleep(delay)
        getattr(deployment, side).post("abort_request", {"rid": rid})
        deployment.decode.post("abort_request", {"rid": rid})
        deployment.prefill.post("abort_request", {"rid": rid})
        thread.join(60)
        assert not thread.is_alive()
    ids, want = reference[0]
    assert deployment.generate(ids, next(rooms))[1]["output_ids"] == want
    assert not any(daemon.transfers()["live"] for daemon in deployment.daemons)


def test_which_path_is_logged(deployment):
    assert "published" in deployment.prefill.log()


def test_prefill_server_is_killed(deployment, reference):
    """Last: decode answers its waiting requests with an error, and does not hang."""
    ids = reference[2][0]
    deployment.prefill.kill()
    start = time.monotonic()
    answer = deployment.decode.generate(
        ids,
        bootstrap_host="127.0.0.1",
        bootstrap_port=deployment.bootstrap,
        bootstrap_room=next(rooms),
    )
    assert (
        "output_ids" not in answer
        or answer.get("status", 200) >= 400
        or answer["meta_info"]["finish_reason"]["type"] == "abort"
    ), answer
    assert time.monotonic() - start < 60
