"""vLLM-Omni's own OmniKVTransferManager over KvxferConnector: KV caches of finished requests go
from a stage to the next, rank by rank, between real processes and through a real daemon."""

import pytest

pytest.importorskip("vllm_omni", reason="vllm-omni is not installed")
import torch  # noqa: E402
from omni_process import StageProcess  # noqa: E402

import kvxfer.vllm_omni  # noqa: E402

LAYERS, BLOCKS, BLOCK, HEADS, DIM = 3, 16, 4, 8, 16
BASE = 51000
REQUESTS = {"req-a": ([3, 1, 7], 10), "req-b": ([0], 4), "req-c": ([15, 2, 9, 4, 11], 19)}

manager = None


def whole():
    """K and V of every layer as one process without tensor parallelism has them."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(2, BLOCKS, BLOCK, HEADS, DIM, generator=generator).to(torch.bfloat16)
            for _ in range(LAYERS)]


def heads(rank, size):
    n = HEADS // size
    return slice(rank * n, (rank + 1) * n)


def config(socket, sends, from_tp, to_tp, **extra):
    from vllm_omni.distributed.omni_connectors.kv_transfer_manager import OmniKVCacheConfig

    return OmniKVCacheConfig(
        connector_config={"type": kvxfer.vllm_omni.NAME, "host": "auto", "zmq_port": BASE,
                          "memory_pool_size": 8 << 20, "kvxfer_socket": socket, **extra},
        from_stage="0", to_stage="1", stage_id=0 if sends else 1, need_send_cache=sends,
        need_recv_cache=not sends, from_tp=from_tp, to_tp=to_tp, recv_timeout=20.0)


def build(_, socket, sends, from_tp, to_tp, extra=()):
    """Runs in a stage process: LOCAL_RANK says its rank."""
    global manager
    from vllm_omni.distributed.omni_connectors.kv_transfer_manager import OmniKVTransferManager

    kvxfer.vllm_omni.register()
    manager = OmniKVTransferManager(config(socket, sends, from_tp, to_tp, **dict(extra)))
    return manager.tp_topology.local_rank


def send(_, rank, size):
    caches = [layer[..., heads(rank, size), :].contiguous() for layer in whole()]
    finished = {req: {"block_ids": blocks, "seq_len": n} for req, (blocks, n) in REQUESTS.items()}
    return manager.handle_finished_requests_kv_transfer(finished, caches, BLOCK, "bfloat16")


def receive(_, sender_info):
    """{request: [(K, V) per layer]}, received as a diffusion worker does."""
    got = {}
    manager.update_sender_info(sender_info)
    for req in REQUESTS:
        data, size = manager.receive_kv_cache_for_request(req)
        if data is None:
            got[req] = None
            continue
        blocks = data["layer_blocks"]
        got[req] = list(zip(blocks["key_cache"], blocks["value_cache"])), size
    return got


def health(_):
    return manager.connector.health()


def close(_):
    manager.close()


def expected(req, rank, size):
    blocks, n = REQUESTS[req]
    pairs = []
    for layer in whole():
        k, v = (layer[i, blocks].flatten(0, 1)[:n, heads(rank, size)] for i in (0, 1))
        pairs.append((k, v))
    return pairs


def announced(replica=0):
    """What the orchestrator tells receivers: the endpoint of rank 0."""
    from vllm_omni.distributed.omni_connectors.utils.kv_utils import kv_zmq_port

    return {"host": "127.0.0.1", "zmq_port": kv_zmq_port(BASE, 0, replica_id=replica)}


def stages(node, sends, n, from_tp, to_tp, **env):
    made = []
    for rank in range(n):
        stage = StageProcess(None, env={"LOCAL_RANK": str(rank), **env})
        assert stage.run(build, node.socket, sends, from_tp, to_tp) == rank
        made.append(stage)
    return made


def check(got, rank, size):
    assert set(got) == set(REQUESTS)
    for req, result in got.items():
        assert result is not None, f"{req} was not received"
        for (k, v), (want_k, want_v) in zip(result[0], expected(req, rank, size)):
            assert torch.equal(k, want_k) and torch.equal(v, want_v)


@pytest.mark.parametrize("from_tp, to_tp", [(1, 1), (2, 2), (2, 1), (1, 2), (4, 2)])
def test_kv_cache_arrives_at_every_rank(shared_node, from_tp, to_tp):
    """Equal, more and fewer ranks on the two sides: merged and sliced by heads."""
    senders = stages(shared_node, True, from_tp, from_tp, to_tp)
    receivers = stages(shared_node, False, to_tp, from_tp, to_tp)
    try:
        for rank, stage in enumerate(senders):
            assert sorted(stage.run(send, rank, from_tp)) == sorted(REQUESTS)
        for rank, stage in enumerate(receivers):
            check(stage.run(receive, announced()), rank, to_tp)
            assert stage.run(health)["pool"]["used"] == 0
        for stage in senders:
            pool = stage.run(health)["pool"]
            assert pool["used"] == pool["waiting_for_getter"] == 0, pool
    finally:
        for stage in senders + receivers:
            stage.run(close)
            stage.stop()


def test_receiver_that_is_first_waits(shared_node):
    receiver, = stages(shared_node, False, 1, 1, 1)
    receiver.send("run", receive, announced())
    sender, = stages(shared_node, True, 1, 1, 1)
    sender.run(send, 0, 1)
    check(receiver.result(), 0, 1)
    for stage in (sender, receiver):
        stage.run(close)
        stage.stop()


def test_replicas_of_a_stage_are_told_apart(shared_node):
    """The request says which replica has computed it."""
    first, = stages(shared_node, True, 1, 1, 1, VLLM_OMNI_REPLICA_ID="0")
    second, = stages(shared_node, True, 1, 1, 1, VLLM_OMNI_REPLICA_ID="1")
    receiver, = stages(shared_node, False, 1, 1, 1)
    second.run(send, 0, 1)
    check(receiver.run(receive, announced(replica=1)), 0, 1)
    assert first.run(health)["puts"] == 0
    for stage in (first, second, receiver):
        stage.run(close)
        stage.stop()


def test_manager_closes_the_connector(shared_node):
    sender, = stages(shared_node, True, 1, 1, 1)
    sender.run(send, 0, 1)
    sender.run(close)
    sender.stop()
