"""Engines that are killed while KV cache is under way: the other side hears of it soon, and what it
computes or serves afterwards is not written into. See vllm_harness.py."""

import json
import os
import pathlib
import subprocess
import sys
import time
import uuid

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.request import RequestStatus  # noqa: E402

import vllm_harness as harness  # noqa: E402
from vllm_fixtures import engines, vllm_model  # noqa: E402, F401

HERE = pathlib.Path(__file__).parent
SOON_S = 10.0  #: bound for hearing of a killed engine, on a loaded machine


class Process:
    """An engine that can be killed; has what vllm_harness' request ids need."""

    def __init__(self, node, path, **options):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([p for p in sys.path if p])}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "vllm_process.py"), node.socket, path,
             json.dumps({"number": harness.next_number(), **options})],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE, env=env)
        while not (line := self.process.stdout.readline()).startswith('{"number"'):
            assert line, "the process has ended"
        self.__dict__.update(json.loads(line))

    def add(self, tokens, params, request_id):
        word = {"tokens": list(tokens), "params": params, "id": request_id}
        self.process.stdin.write(json.dumps(word) + "\n")
        self.process.stdin.flush()

    def wait_for_progress(self, computed):
        while json.loads(self.process.stdout.readline())["computed"] < computed:
            pass

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def process(shared_node, vllm_model):
    made = []

    def make(**options):
        made.append(Process(shared_node, vllm_model, **options))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.kill()


def params(**words):
    return {"transfer_id": f"tx-{uuid.uuid4()}", **words}


def test_a_killed_prefill_engine_ends_the_decodes_wait(engines, process):
    decode = engines("kv_consumer", recv_abort_timeout=60)
    prefill = process(role="kv_producer", max_batched=16)
    tokens, id = list(range(100, 400)), harness.routed_id(prefill, decode)
    words = params()
    request = decode.add(tokens, {**words, "do_remote_prefill": True}, request_id=id, max_tokens=2)
    decode.step()
    harness.wait_until(lambda: decode.workers[0].counters()["messages_out"])
    prefill.add(tokens, {**words, "do_remote_decode": True}, id)
    prefill.wait_for_progress(48)
    prefill.kill()
    killed = time.monotonic()
    harness.run(decode, until=lambda: request.request_id in decode.received)
    assert time.monotonic() - killed < SOON_S
    assert decode.invalid
    harness.run(decode, until=lambda: request.num_output_tokens == 1)
    assert not decode.wrong(request)
    harness.run(decode)
    assert request.status == RequestStatus.FINISHED_LENGTH_CAPPED and decode.used_blocks() == 0


@pytest.mark.parametrize("read_mode", [False, True], ids=["write", "read"])
def test_a_killed_decode_engine_frees_prefill(engines, process, read_mode):
    prefill = engines("kv_producer", max_batched=16, read_mode=read_mode, defer_timeout=60,
                      transfer_timeout=60)
    decode = process(role="kv_consumer", read_mode=read_mode)
    tokens, words = list(range(100, 400)), params()
    if read_mode:
        id, asked, answer = harness.prefill_first(prefill, decode, tokens)
    else:
        id = harness.routed_id(prefill, decode)
        asked = prefill.add(tokens, {**words, "do_remote_decode": True}, request_id=id)
        answer = {**words, "do_remote_prefill": True}
    decode.add(tokens, answer, id)
    before = prefill.workers[0].counters()["messages_in"]
    if not read_mode:
        prefill.step()
    harness.wait_until(lambda: prefill.workers[0].counters()["messages_in"] > before)
    decode.kill()
    killed = time.monotonic()
    harness.run(prefill)
    assert time.monotonic() - killed < SOON_S
    assert asked.request_id in prefill.sent and prefill.used_blocks() == 0
