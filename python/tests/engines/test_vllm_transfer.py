"""KV cache from prefill to decode: two engines of the real vLLM (scheduler, requests, KV cache,
connectors), real daemons, no model. What arrives is compared slot by slot."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm_harness as harness  # noqa: E402
from vllm_fixtures import engines, vllm_model  # noqa: E402, F401
from vllm_harness import pair, run, run_to_receipt, send, write  # noqa: E402


BOTH_MODES = pytest.mark.parametrize("read_mode", [False, True], ids=["write", "read"])


def sizes(*pairs):
    return pytest.mark.parametrize("tp", pairs, ids=[f"tp{p}-tp{d}" for p, d in pairs])


def check_moves(prefill, decode, tokens, end=None):
    _, request = send(prefill, decode, tokens)
    run_to_receipt(prefill, decode, request)
    assert not decode.wrong(request, end)
    run(prefill, decode)
    assert (prefill.used_blocks(), decode.used_blocks()) == (0, 0)
    assert not decode.invalid
    return request


def check_moves_or_computes(prefill, decode, tokens):
    if len(tokens) > 1:
        check_moves(prefill, decode, tokens, len(tokens) - 1)
        return
    send(prefill, decode, tokens)
    run(prefill, decode)
    assert (prefill.used_blocks(), decode.used_blocks()) == (0, 0)


@pytest.mark.parametrize("n_tokens", [1, 2, 15, 16, 17, 32, 33, 200])
@BOTH_MODES
def test_prompts_of_any_length(engines, read_mode, n_tokens):
    check_moves(*pair(engines, read_mode=read_mode), range(5, 5 + n_tokens))


@BOTH_MODES
@sizes((1, 2), (2, 1), (2, 2), (1, 4), (4, 2), (4, 8), (8, 1))
def test_tensor_parallel_sizes_may_differ(engines, tp, read_mode):
    check_moves(*pair(engines, {"tp": tp[0]}, {"tp": tp[1]}, read_mode=read_mode),
                range(100, 150))


@sizes((1, 2), (2, 1))
@pytest.mark.parametrize("layout", ["LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"])
def test_any_order_in_memory(engines, layout, tp):
    layout = harness.KVCacheLayout[layout]
    check_moves(*pair(engines, {"tp": tp[0]}, {"tp": tp[1]}, layout=layout),
                range(100, 150))


@BOTH_MODES
@sizes((1, 1), (1, 2), (2, 1))
def test_latents_are_replicated(engines, tp, read_mode):
    check_moves(*pair(engines, {"tp": tp[0]}, {"tp": tp[1]}, groups=("mla",),
                      read_mode=read_mode), range(100, 150))


@sizes((1, 1), (2, 1))
@pytest.mark.parametrize("layout", ["LBNHC", "LBHNC"])
def test_kernels_may_use_smaller_blocks_than_the_tables(engines, layout, tp):
    layout = harness.KVCacheLayout[layout]
    check_moves(*pair(engines, {"tp": tp[0]}, {"tp": tp[1]}, layout=layout, block=32,
                      kernel_block=8), range(100, 171))


@BOTH_MODES
@pytest.mark.parametrize("n_tokens", [1, 2, 40, 79, 80, 81, 161])
def test_groups_with_windows(engines, read_mode, n_tokens):
    check_moves_or_computes(*pair(engines, read_mode=read_mode, groups=("full", "window40")),
                            range(100, 100 + n_tokens))


def test_every_chunk_is_sent_as_it_is_computed(engines):
    """Before the last chunk is computed, the KV of the first ones is at the decode side."""
    prefill, decode = pair(engines, {"max_batched": 32})
    asked, request = write(prefill, decode, range(100, 200))
    decode.step()
    for _ in range(2):
        prefill.step()
    assert asked.num_computed_tokens == 64
    harness.wait_until(lambda: not decode.wrong(request, 64))
    assert decode.wrong(request, 65) and request.request_id not in decode.received
    run_to_receipt(prefill, decode, request)
    assert not decode.wrong(request)


@pytest.mark.parametrize("at_a_time, there", [(1, 1), (2, 2), (3, 3)])
def test_layers_are_sent_while_others_are_computed(engines, at_a_time, there):
    """After so many layers of the forward, they are at the decode side, and no others."""
    prefill, decode = pair(engines, {"stream_layers": at_a_time})
    asked, request = write(prefill, decode, range(100, 150))
    decode.step()
    layers = prefill.layers()

    def look(layer):
        if layer == layers[there - 1]:
            harness.wait_until(lambda: not decode.wrong(request, layers=layers[:there]))
            for other in layers[there:]:
                assert decode.wrong(request, layers=[other])

    prefill.after_layer = look
    run_to_receipt(prefill, decode, request)
    assert not decode.wrong(request)


@BOTH_MODES
def test_layers_without_hooks_are_sent_at_the_end_of_the_step(engines, read_mode):
    prefill, decode = pair(engines, read_mode=read_mode)
    prefill.hooks = False
    check_moves(prefill, decode, range(100, 150))


@BOTH_MODES
def test_decode_asks_only_for_what_it_has_not_cached(engines, read_mode):
    prefill, decode = pair(engines, read_mode=read_mode)
    check_moves(prefill, decode, range(100, 150))
    before = decode.moved_bytes()
    check_moves(prefill, decode, list(range(100, 148)) + [7] * 40)
    assert decode.moved_bytes() - before == 3 * decode.block_bytes()  # tokens 48 to 87


@BOTH_MODES
def test_prefill_sends_what_it_had_cached(engines, read_mode):
    prefill, decode = pair(engines, read_mode=read_mode)
    prefill.add(range(100, 164), None)
    run(prefill)
    asked, request = send(prefill, decode, range(100, 180))
    run_to_receipt(prefill, decode, request)
    assert prefill.outputs[asked.request_id][0].prefill_stats.num_local_cached_tokens == 64
    assert not decode.wrong(request)


@BOTH_MODES
def test_nothing_is_moved_when_decode_has_all(engines, read_mode):
    """With windows the last token is left to the decode side, which can have all the others."""
    prefill, decode = pair(engines, read_mode=read_mode, groups=("full", "window40"))
    check_moves(prefill, decode, range(100, 150), 49)
    before = decode.moved_bytes()
    send(prefill, decode, range(100, 149))
    run(prefill, decode)
    assert decode.moved_bytes() == before
    assert (prefill.used_blocks(), decode.used_blocks()) == (0, 0)


@BOTH_MODES
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_many_requests_at_once(engines, read_mode, asynchronous):
    prefill, decode = pair(engines, read_mode=read_mode, max_batched=128, blocks=512,
                           async_scheduling=asynchronous)
    requests = [send(prefill, decode, [i, *range(3 * i + 1)])[1] for i in range(30)]
    seen = set()

    def check():
        for request in requests:
            id = request.request_id
            if id in decode.received and id not in seen and not request.is_finished():
                seen.add(id)
                assert not decode.wrong(request)
        return False

    run(prefill, decode, until=check)
    assert len(seen) > 20 and not decode.invalid
    assert all(request.is_finished() for request in requests)
    assert (prefill.used_blocks(), decode.used_blocks()) == (0, 0)


@BOTH_MODES
def test_a_sidecars_request_names_the_engine_in_its_params(engines, read_mode):
    """llm-d: no addresses in the request id, which both sides get from one header."""
    prefill, decode = pair(engines, read_mode=read_mode)
    asked = prefill.add(range(100, 150), {"do_remote_decode": True}, request_id="cmpl-5f9e-0-")
    run(prefill, until=lambda: asked.request_id in prefill.outputs)
    answer = prefill.outputs[asked.request_id][-1].kv_transfer_params
    request = decode.add(range(100, 150), answer, request_id="cmpl-5f9e-0-", max_tokens=2)
    run_to_receipt(prefill, decode, request)
    assert not decode.wrong(request)


def test_the_answer_has_the_keys_that_proxies_copy(engines):
    prefill = engines("kv_producer", read_mode=True, defer_timeout=1)
    asked = prefill.add(range(100, 150), {"do_remote_decode": True, "transfer_id": "tx-1"})
    run(prefill, until=lambda: asked.request_id in prefill.outputs)
    answer = prefill.outputs[asked.request_id][-1].kv_transfer_params
    host, port = prefill.daemon.split(":")
    assert {key: answer[key] for key in (
        "remote_engine_id", "remote_host", "remote_handshake_port", "remote_notify_port",
        "transfer_id", "do_remote_prefill", "tp_size")} == {
            "remote_engine_id": harness.zmq_of(prefill), "remote_host": host,
            "remote_handshake_port": int(port), "remote_notify_port": prefill.number,
            "transfer_id": "tx-1", "do_remote_prefill": True, "tp_size": 1}
    assert len(answer["remote_block_ids"][0]) == 4


def test_other_requests_are_left_alone(engines):
    engine = engines("kv_both")
    request = engine.add(range(100, 150), None, max_tokens=3)
    run(engine)
    assert request.is_finished() and engine.used_blocks() == 0


@BOTH_MODES
@sizes((1, 1), (1, 2), (2, 1), (4, 2), (2, 2))
def test_states_of_recurrent_layers(engines, tp, read_mode):
    """They are those of all tokens but the last one, which the decode side computes."""
    prefill, decode = pair(engines, {"tp": tp[0], "max_batched": 64}, {"tp": tp[1]},
                           read_mode=read_mode, groups=("full", "mamba"), prefix_cache=False)
    check_moves(prefill, decode, range(100, 200), 99)
