"""Many requests, some of which are aborted on either side at any time: nothing arrives wrong,
nothing is written into after its end, nothing is left. KVXFER_SOAK: how many (default 80)."""

import gc
import os
import random
import time

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # noqa: E402
from vllm_fixtures import engines, vllm_model  # noqa: E402, F401

N = int(os.environ.get("KVXFER_SOAK", "80"))
AT_ONCE = 12


class Soak:
    def __init__(self, prefill, decode, seed):
        self.prefill, self.decode = prefill, decode
        self.random = random.Random(seed)
        self.sent = 0
        self.running = {}  # decode's request -> prefill's
        self.reading = []  # READ: the prefill's answer is awaited
        self.whole = 0

    def run(self, n):
        end = time.monotonic() + 60 + n * 0.2
        while self.sent < n or self.running or self.reading or self.prefill.busy():
            assert time.monotonic() < end, (self.running, self.prefill.scheduler.requests)
            if self.sent < n and len(self.running) + len(self.reading) < AT_ONCE:
                self.send()
            if self.random.random() < 0.1:
                self.abort()
            for engine in self.random.choices((self.prefill, self.decode), k=3):
                engine.step()
            self.look()

    def send(self):
        self.sent += 1
        tokens = [self.random.randrange(50)] * self.random.choice((1, 16, 40, 90)) + [self.sent]
        id = harness.routed_id(self.prefill, self.decode)
        params = {"transfer_id": f"tx-{self.sent}"}
        asked = self.prefill.add(tokens, {**params, "do_remote_decode": True}, request_id=id)
        if self.prefill.read_mode:
            self.reading.append((asked, id, tokens))
        else:
            params["do_remote_prefill"] = True
            request = self.decode.add(tokens, params, request_id=id, max_tokens=3)
            self.running[request.request_id] = (request, asked)

    def abort(self):
        if self.running:
            request, asked = self.random.choice(list(self.running.values()))
            (self.decode if self.random.random() < 0.5 else self.prefill).scheduler.finish_requests(
                [request.request_id, asked.request_id], harness.RequestStatus.FINISHED_ABORTED)

    def look(self):
        for one in list(self.reading):
            asked, id, tokens = one
            answer = self.prefill.outputs.get(asked.request_id)
            if answer:
                self.reading.remove(one)
                request = self.decode.add(tokens, answer[-1].kv_transfer_params, request_id=id,
                                          max_tokens=3)
                self.running[request.request_id] = (request, asked)
        for id, (request, _) in list(self.running.items()):
            if request.is_finished():
                del self.running[id]
            elif id in self.decode.received and not self.decode.invalid:
                if request.num_output_tokens == 0 and request.num_computed_tokens:
                    self.whole += 1
                assert not self.decode.wrong(request, min(request.num_computed_tokens,
                                                          request.num_prompt_tokens)), id


@pytest.mark.parametrize("read_mode", [False, True], ids=["write", "read"])
@pytest.mark.parametrize("tp", [(1, 1), (1, 2)], ids=["tp1-tp1", "tp1-tp2"])
def test_nothing_is_wrong_or_left_after_many_requests(engines, read_mode, tp):
    prefill, decode = harness.pair(
        engines, {"tp": tp[0], "max_batched": 64}, {"tp": tp[1]}, read_mode=read_mode,
        defer_timeout=3, transfer_timeout=10, recv_abort_timeout=10)
    soak = Soak(prefill, decode, seed=7)
    soak.run(N)
    assert soak.whole > N // 4
    gc.collect()
    for engine in (prefill, decode):
        harness.run(engine)
        assert engine.used_blocks() == 0 and not engine.scheduler.requests
        assert not engine.leftovers()
        for worker in engine.workers:
            harness.wait_until(lambda: worker.counters()["open"] == 0)
