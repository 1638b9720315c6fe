"""What goes wrong between prefill and decode: both sides hear of it, and no block is used again
before nothing touches it any more. Real vLLM scheduler and connectors, real daemons; see
vllm_harness.py."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.request import RequestStatus  # noqa: E402

from vllm_fixtures import engines, vllm_model  # noqa: E402, F401
from vllm_harness import (pair, prefill_first, read, run, run_to_receipt, send,  # noqa: E402
                          wait_until, write)

BOTH_MODES = pytest.mark.parametrize("read_mode", [False, True], ids=["write", "read"])


def check_idle(*engines):
    """Nothing is left of any request."""
    for engine in engines:
        assert engine.used_blocks() == 0 and not engine.scheduler.requests
        for worker in engine.workers:
            wait_until(lambda: worker.counters()["open"] == 0)


# ---- time

@BOTH_MODES
def test_prefill_frees_its_blocks_when_decode_does_not_come(engines, read_mode):
    prefill = engines("kv_producer", read_mode=read_mode, defer_timeout=1, transfer_timeout=0.5)
    prefill.add(range(100, 150), {"do_remote_decode": True, "transfer_id": "tx-alone"})
    prefill.step()
    assert prefill.used_blocks() == 4
    run(prefill)
    check_idle(prefill)


@pytest.mark.parametrize("groups", [("full",), ("full", "window40")], ids=["one", "several"])
def test_decode_computes_itself_when_prefill_does_not_come(engines, groups):
    prefill, decode = pair(engines, groups=groups, recv_abort_timeout=1)
    _, request = write(prefill, decode, range(100, 150))
    run(decode)
    assert request.num_preemptions == 0 and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    assert decode.received == {request.request_id}
    check_idle(decode)


def test_decode_fails_the_request_where_it_is_told_to(engines):
    prefill, decode = pair(engines, decode={"policy": "fail"}, recv_abort_timeout=1)
    _, request = write(prefill, decode, range(100, 150))
    run(decode)
    assert request.status == RequestStatus.FINISHED_ERROR
    check_idle(decode)


def test_read_of_what_has_expired_is_refused(engines):
    prefill, decode = pair(engines, read_mode=True, defer_timeout=0.5)
    _, request = read(prefill, decode, range(100, 150))
    run(prefill)
    check_idle(prefill)
    run(decode)
    assert decode.invalid and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    check_idle(decode)


def test_an_engine_that_is_not_there_is_computed_for(engines):
    decode = engines("kv_consumer", recv_abort_timeout=2)
    request = decode.add(range(100, 150), {
        "do_remote_prefill": True, "transfer_id": "tx-2", "remote_host": "127.0.0.1",
        "remote_handshake_port": int(decode.daemon.split(":")[1]), "remote_notify_port": 9},
        max_tokens=2)
    run(decode)
    assert decode.invalid and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    check_idle(decode)


@pytest.mark.parametrize("extra", [{}, {"remote_host": "10.9.9.9", "remote_handshake_port": 1,
                                        "remote_notify_port": 9}], ids=["unnamed", "forbidden"])
def test_a_source_that_is_not_named_or_not_allowed_is_not_asked(engines, extra):
    decode = engines("kv_consumer", allowed_peers="127.0.0.1")
    request = decode.add(range(100, 150), {"do_remote_prefill": True, "transfer_id": "t", **extra},
                         max_tokens=2)
    run(decode)
    assert request.status == RequestStatus.FINISHED_LENGTH_CAPPED and not decode.received
    check_idle(decode)


# ---- aborts

def test_abort_of_a_waiting_decode_frees_both(engines):
    prefill, decode = pair(engines)
    asked, request = write(prefill, decode, range(100, 150))
    decode.step()
    decode.abort(request)
    assert decode.used_blocks() == 4  # until the other side has confirmed
    run(prefill, decode)
    assert request.request_id in decode.received and asked.request_id in prefill.sent
    check_idle(prefill, decode)


def test_abort_of_a_decode_before_it_has_blocks_frees_prefill(engines):
    prefill, decode = pair(engines, defer_timeout=20)
    _, request = write(prefill, decode, range(100, 150))
    decode.abort(request)
    run(prefill, decode)
    check_idle(prefill, decode)


def test_abort_of_a_read_before_it_has_blocks_frees_prefill(engines):
    prefill, decode = pair(engines, read_mode=True, defer_timeout=20)
    asked, request = read(prefill, decode, range(100, 150))
    assert prefill.used_blocks() == 4
    decode.abort(request)
    run(prefill, decode)
    assert asked.request_id in prefill.sent
    check_idle(prefill, decode)


def test_abort_of_a_prefill_that_computes_ends_the_decodes_wait(engines):
    prefill, decode = pair(engines, {"max_batched": 32})
    asked, request = write(prefill, decode, range(100, 200))
    decode.step()
    prefill.step()
    prefill.abort(asked)
    run(prefill, decode)
    assert decode.invalid and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    check_idle(prefill, decode)


def test_abort_of_a_prefill_that_waits_ends_the_decodes_wait(engines):
    prefill, decode = pair(engines)
    asked, request = write(prefill, decode, range(100, 150))
    decode.step()
    prefill.abort(asked)
    run(prefill, decode)
    assert decode.invalid and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    check_idle(prefill, decode)


def test_a_request_that_decodes_server_refuses_frees_prefill(engines):
    """vLLM tells of it by a request with an id of its own that is aborted at once."""
    prefill, decode = pair(engines, read_mode=True, defer_timeout=20)
    asked, answer = prefill_first(prefill, decode, range(100, 150))[1:]
    copied = {key: answer[key] for key in ("transfer_id", "remote_engine_id", "do_remote_prefill")}
    decode.abort(decode.add([0], copied, request_id="cmpl-5f9e"))
    run(prefill, decode)
    assert asked.request_id in prefill.sent
    check_idle(prefill, decode)


def test_a_request_that_failed_is_not_released_a_second_time(engines):
    prefill, decode = pair(engines, decode={"policy": "fail"}, recv_abort_timeout=1)
    _, request = write(prefill, decode, range(100, 150))
    run(decode)
    before = decode.workers[0].counters()["messages_out"]
    decode.abort(decode.add([0], {"transfer_id": request.kv_transfer_params["transfer_id"],
                                  "do_remote_prefill": True}, request_id="cmpl-5f9e"))
    run(decode)
    assert decode.workers[0].counters()["messages_out"] == before


# ---- preemption

def preempt(engine, request):
    """The scheduler takes the request's blocks back; another one, which gets them, runs first."""
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert request.num_preemptions == 1
    other = engine.add(range(500, 564), None)
    engine.scheduler.waiting.remove_request(other)
    engine.scheduler.waiting.prepend_request(other)


@pytest.mark.parametrize("claimed", [False, True], ids=["unclaimed", "claimed"])
def test_a_preempted_prefill_is_sent_from_its_new_blocks(engines, claimed):
    prefill, decode = pair(engines, {"max_batched": 64, "prefix_cache": False})
    asked, request = write(prefill, decode, range(100, 200))
    if claimed:
        decode.step()
    prefill.step()
    assert asked.num_computed_tokens == 64
    preempt(prefill, asked)
    run_to_receipt(prefill, decode, request)
    assert not decode.wrong(request) and not decode.invalid
    run(prefill, decode)
    check_idle(prefill, decode)


def test_a_prefill_preempted_behind_its_last_chunk_is_sent_from_its_new_blocks(engines):
    """Asynchronous scheduling: the step that completes the prompt has run, its output has not been
    looked at, and the decode side has not asked yet."""
    prefill, decode = pair(engines, {"async_scheduling": True, "prefix_cache": False})
    asked, request = write(prefill, decode, range(100, 200))
    prefill.step()
    assert asked.num_computed_tokens == 100 and not prefill.outputs
    preempt(prefill, asked)
    run_to_receipt(prefill, decode, request)
    assert not decode.wrong(request) and not decode.invalid
    run(prefill, decode)
    check_idle(prefill, decode)


# ---- ends of processes and daemons

@BOTH_MODES
def test_a_decode_engine_that_ends_frees_prefill(engines, read_mode):
    prefill, decode = pair(engines, read_mode=read_mode, defer_timeout=20)
    asked, request = send(prefill, decode, range(100, 150))
    decode.step()
    wait_until(lambda: decode.workers[0].counters()["messages_out"])  # it has asked
    decode.close()
    run(prefill)
    assert asked.request_id in prefill.sent
    check_idle(prefill)


def test_a_prefill_engine_that_ends_ends_the_decodes_wait(engines):
    prefill, decode = pair(engines, {"max_batched": 32}, recv_abort_timeout=60)
    _, request = write(prefill, decode, range(100, 200))
    decode.step()
    prefill.step()
    prefill.close()
    run(decode)
    assert decode.invalid and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    check_idle(decode)


@BOTH_MODES
def test_a_daemon_that_is_killed_fails_what_is_open_and_serves_again(engines, node, read_mode):
    prefill, decode = pair(engines, node=node, read_mode=read_mode, defer_timeout=2,
                           transfer_timeout=2, recv_abort_timeout=4)
    _, request = send(prefill, decode, range(100, 200))
    prefill.step()
    decode.step()
    node.sets += (f"peer.listen={prefill.daemon}",)  # the port stays
    node.kill()
    run(prefill, decode)
    assert request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    check_idle(prefill, decode)
    node.start()
    decode.invalid.clear()
    _, request = send(prefill, decode, range(300, 400))
    run_to_receipt(prefill, decode, request)
    assert not decode.invalid and not decode.wrong(request)


# ---- names

def test_two_requests_of_one_transfer_id_do_not_disturb_each_other(engines):
    """A proxy that retries: the second one fails, the first one goes on."""
    prefill, decode = pair(engines)
    params = {"transfer_id": "tx-twice", "do_remote_decode": True}
    first = prefill.add(range(100, 150), dict(params))
    second = prefill.add(range(200, 250), dict(params))
    run(prefill, until=lambda: second.request_id in prefill.outputs)
    request = decode.add(range(100, 150), prefill.outputs[first.request_id][-1].kv_transfer_params,
                         max_tokens=2)
    run_to_receipt(prefill, decode, request)
    assert not decode.wrong(request)
    run(prefill, decode)
    check_idle(prefill, decode)


def test_engines_of_different_models_refuse_each_other(engines, tmp_path):
    prefill, decode = pair(engines, {"groups": ("mla",)})
    _, request = write(prefill, decode, range(100, 150))
    run(prefill, decode)
    assert decode.invalid and request.status == RequestStatus.FINISHED_LENGTH_CAPPED
    check_idle(prefill, decode)
