"""vLLM-Omni's own chunk adapter, payload transport and orchestrator helpers over KvxferConnector:
three stages in processes of their own, chunks streamed from one to the next."""

import time
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm_omni", reason="vllm-omni is not installed")
import torch  # noqa: E402
from omni_process import StageProcess  # noqa: E402

import kvxfer.vllm_omni  # noqa: E402

CHUNKS = 6
BASE = 52000

adapter = None


def request(request_id, sender_info=None):
    """A request of vLLM-Omni's scheduler."""
    from vllm.sampling_params import SamplingParams
    from vllm_omni.request import OmniRequest

    made = OmniRequest(request_id, [1, 2, 3], SamplingParams(max_tokens=64), None,
                       external_req_id=request_id)
    made.payload_sender_info = sender_info
    return made


def finish(one):
    from vllm.v1.request import RequestStatus

    one.status = RequestStatus.FINISHED_STOPPED


def build_chunk(transfer_manager, multimodal_output, request, is_finished):
    """custom_process_next_stage_input_func: what a stage hands to the next."""
    from vllm_omni.data_entry_keys import CodesStruct, OmniPayloadStruct

    return OmniPayloadStruct(codes=CodesStruct(audio=multimodal_output["audio"]))


def codes(request_id, chunk, numbers):
    seed = sum(request_id.encode()) * 100 + chunk
    return torch.arange(seed, seed + numbers).reshape(-1, 4)


def model_config(stage, socket, role, **extra):
    """As vLLM-Omni's stage configuration gives it to a stage process."""
    extra = {"zmq_port": BASE, "host": "auto", "role": role, "memory_pool_size": 8 << 20,
             "kvxfer_socket": socket, **extra}
    if role == "receiver":
        extra.update(from_stage=stage - 1, to_stage=stage)
    return SimpleNamespace(
        stage_connector_config={"name": kvxfer.vllm_omni.NAME, "extra": extra}, stage_id=stage,
        worker_type="generation", async_chunk=True, max_model_len=4096, max_num_seqs=8,
        custom_process_next_stage_input_func="test_omni_chunks.build_chunk")


def build_adapter(_, stage, socket, role, extra=()):
    global adapter
    from vllm_omni.distributed.omni_connectors.transfer_adapter import chunk_transfer_adapter

    kvxfer.vllm_omni.register()
    adapter = chunk_transfer_adapter.OmniChunkTransferAdapter(SimpleNamespace(
        model_config=model_config(stage, socket, role, **dict(extra)),
        scheduler_config=SimpleNamespace(max_num_seqs=8)))
    return type(adapter.connector).__name__


def stream(_, request_ids, numbers, pause=0.0):
    """Sends all chunks of some requests, interleaved, as a scheduler does step by step."""
    requests = {request_id: request(request_id) for request_id in request_ids}
    for chunk in range(CHUNKS):
        for request_id, one in requests.items():
            one.num_computed_tokens = chunk + 1
            if chunk == CHUNKS - 1:
                finish(one)
            adapter.save_async({"audio": codes(request_id, chunk, numbers)}, one)
        time.sleep(pause)
    until = time.monotonic() + 30
    while adapter._pending_save_reqs and time.monotonic() < until:
        time.sleep(0.01)
    return adapter.collect_failed_send_request_ids()


def collect(_, request_ids, sender_info, forward):
    """Receives all chunks of some requests; ``forward``: and hands each to the next stage."""
    requests = {request_id: request(request_id, sender_info) for request_id in request_ids}
    onward = {request_id: request(request_id) for request_id in request_ids}
    got = {request_id: [] for request_id in request_ids}
    for one in requests.values():
        adapter.load_async(one)
    until = time.monotonic() + 60
    while requests and time.monotonic() < until:
        for request_id in list(requests):
            if request_id not in adapter._finished_load_reqs:
                continue
            adapter._finished_load_reqs.discard(request_id)
            audio = requests[request_id].additional_information["codes"]["audio"]
            got[request_id].append(audio)
            last = request_id in adapter.upstream_exhausted_requests
            if forward:
                onward[request_id].num_computed_tokens = len(got[request_id])
                if last:
                    finish(onward[request_id])
                adapter.save_async({"audio": audio * 2}, onward[request_id])
            if last:
                del requests[request_id]
            else:
                adapter.load_async(requests[request_id])
        time.sleep(0.0005)
    return got


def health(_):
    return adapter.connector.health()


def shut_down(_):
    adapter.shutdown()


def info(stage):
    """payload_sender_info of a request, as the orchestrator makes it."""
    from vllm_omni.distributed.omni_connectors.utils.initialization import (
        compute_connector_zmq_port,
    )

    return {"host": "127.0.0.1", "zmq_port": compute_connector_zmq_port(
        BASE, purpose="request_forwarding", from_stage=stage)}


@pytest.fixture
def pipeline(shared_node):
    """Stages 0 -> 1 -> 2, each a process."""
    made = []
    for stage in range(3):
        process = StageProcess(None)
        role = "sender" if stage == 0 else "receiver"
        assert process.run(build_adapter, stage, shared_node.socket, role) == "KvxferConnector"
        made.append(process)
    yield made
    try:
        for process in made:
            process.run(shut_down)
            process.stop()
    finally:
        for process in made:
            process.end()


@pytest.mark.parametrize("numbers", [100, 40000], ids=["3 kB", "1.3 MB"])
@pytest.mark.parametrize("told", [True, False], ids=["sender told", "sender configured"])
def test_chunks_stream_through_three_stages(pipeline, numbers, told):
    ids = [f"r{i}" for i in range(4)]
    pipeline[2].send("run", collect, ids, info(1) if told else None, False)
    pipeline[1].send("run", collect, ids, info(0) if told else None, True)
    assert pipeline[0].run(stream, ids, numbers, 0.002) == {}
    middle, last = pipeline[1].result(), pipeline[2].result()
    for request_id in ids:
        want = [codes(request_id, chunk, numbers) for chunk in range(CHUNKS)]
        assert [torch.equal(a, b) for a, b in zip(middle[request_id], want)] == [True] * CHUNKS
        assert [torch.equal(a, 2 * b) for a, b in zip(last[request_id], want)] == [True] * CHUNKS
    for process in pipeline:
        until = time.monotonic() + 5
        while process.run(health)["pool"]["used"] and time.monotonic() < until:
            time.sleep(0.01)
        pool = process.run(health)["pool"]
        assert pool["used"] == pool["waiting_for_getter"] == pool["pinned"] == 0, pool


def test_send_that_cannot_be_placed_is_reported(shared_node):
    """The scheduler hears of a chunk that will never come."""
    process = StageProcess(None)
    extra = (("memory_pool_size", 4096), ("kvxfer_put_wait_seconds", 0.1))
    process.run(build_adapter, 0, shared_node.socket, "sender", extra)
    failed = process.run(stream, ["r0"], 40000)
    assert "r0" in failed
    process.run(shut_down)
    process.stop()


def transport(socket, role, stage):
    """The model runner's payload transport, without a model."""
    from vllm_omni.worker.omni_connector_model_runner_mixin import OmniConnectorModelRunnerMixin

    kvxfer.vllm_omni.register()

    class Runner(OmniConnectorModelRunnerMixin):
        def is_data_transfer_rank(self):
            return True

    runner = Runner()
    runner._omni_connector = Runner._create_connector(model_config(stage, socket, role))
    runner._stage_id = stage
    return runner


def test_model_runner_receives_a_stage_payload(shared_node):
    """recv_stage_payload: a receive with a deadline, started before the put."""
    process = StageProcess(shared_node.socket, zmq_port=BASE + 50, stage_id=0)
    runner = transport(shared_node.socket, "receiver", 1)
    where = {"host": "127.0.0.1", "zmq_port": BASE + 50}
    payload = {"embed": torch.arange(50000), "meta": {"finished": True}}
    process.send("run", put_later, "ext_0_0", payload)
    got = runner.recv_stage_payload("ext", "0", "1", sender_info=where, retry_seconds=20)
    assert process.result()
    assert torch.equal(got["embed"], payload["embed"]) and got["meta"] == payload["meta"]
    begin = time.monotonic()
    assert runner.recv_stage_payload("none", "0", "1", sender_info=where,
                                     retry_seconds=0.3) is None
    assert time.monotonic() - begin < 2
    runner._omni_connector.close()
    process.stop()


def put_later(connector, key, payload):
    time.sleep(0.2)
    return connector.put("0", "1", key, payload)[0]


def test_orchestrator_hands_a_request_over(shared_node):
    """try_send_via_connector and try_recv_via_connector, with the metadata in the queue."""
    from vllm_omni.distributed.omni_connectors.adapter import (
        try_recv_via_connector,
        try_send_via_connector,
    )

    process = StageProcess(None)
    runner = transport(shared_node.socket, "sender", 0)
    queue = []
    sent = try_send_via_connector(
        runner._omni_connector, 0, 1, "req-1", {"prompt_token_ids": list(range(3000))}, None,
        "a prompt", queue.append, SimpleNamespace(on_forward=lambda *args: None))
    assert sent
    assert process.run(receive_task, shared_node.socket, queue[0]) == list(range(3000))
    assert try_recv_via_connector({"request_id": "x"}, {}, 1)[0] is None
    runner._omni_connector.close()
    process.stop()


def receive_task(_, socket, task):
    from vllm_omni.distributed.omni_connectors.adapter import try_recv_via_connector

    kvxfer.vllm_omni.register()
    connector = transport(socket, "receiver", 1)._omni_connector
    inputs, metrics = try_recv_via_connector(task, {("0", "1"): connector}, 1)
    connector.close()
    assert metrics["rx_transfer_bytes"] > 3000
    return inputs["prompt_token_ids"]
