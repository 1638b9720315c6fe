"""The connector as vLLM sees it: loading, base classes, memory, statistics, what is refused."""

import logging
import pickle

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import prometheus_client  # noqa: E402
import torch  # noqa: E402
from vllm.config import KVTransferConfig  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1 import base  # noqa: E402

import kvxfer  # noqa: E402
import vllm_harness as harness  # noqa: E402
from vllm_fixtures import engines, vllm_model  # noqa: E402, F401
from kvxfer.pd import Outcome  # noqa: E402
from kvxfer.vllm import KvxferConnector, connector  # noqa: E402
from kvxfer.vllm.memory import SharedAllocation, memories_of  # noqa: E402
from kvxfer.vllm.stats import KvxferStats  # noqa: E402

CONFIG = KVTransferConfig(kv_connector="KvxferConnector", kv_role="kv_producer",
                          kv_connector_module_path="kvxfer.vllm")


def test_vllm_loads_it_by_its_module_path():
    assert KVConnectorFactory.get_connector_class(CONFIG) is KvxferConnector
    assert KVConnectorFactory.supports_hma_config(CONFIG)


def test_every_method_is_one_of_the_base_class_or_documented_as_ours():
    own = {"paths", "counters", "supports_sleep_mode"}
    public = {name for name in vars(KvxferConnector) if not name.startswith("_")}
    assert not {name for name in public - own if not hasattr(base.KVConnectorBase_V1, name)
                and not hasattr(base.SupportsHMA, name)}


def test_a_vllm_that_it_was_not_made_for_is_warned_of(engines, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "vllm.kvxfer")
    monkeypatch.setattr(connector.vllm, "__version__", "9.9.9")
    engines()
    assert "made for vLLM 0.32.* and 0.33.*, this is 9.9.9" in caplog.text


def test_context_parallelism_is_refused_with_what_to_do(engines):
    config = engines().configs[0]
    config.parallel_config.decode_context_parallel_size = 2
    with pytest.raises(ValueError, match="--decode-context-parallel-size 1"):
        KVConnectorFactory.create_connector(config, base.KVConnectorRole.SCHEDULER, None)


def test_no_daemon_is_an_error_that_names_the_socket(engines, tmp_path):
    with pytest.raises(kvxfer.KvxferError, match="no-daemon.sock"):
        engines(socket=str(tmp_path / "no-daemon.sock"))


def test_two_engines_of_one_number_are_refused(engines):
    first = engines()
    with pytest.raises(kvxfer.errors.Exists):
        engines(http_port=first.number)


# ---- what workers and scheduler tell each other

def test_what_goes_between_processes_can_be_pickled(engines):
    prefill, decode = harness.pair(engines)
    harness.write(prefill, decode, range(40))
    for engine in (prefill, decode):
        meta = engine.scheduler.schedule().kv_connector_metadata
        assert pickle.loads(pickle.dumps(meta)) == meta
        assert meta.sends or meta.receives


def test_the_handshake_tells_the_daemons_address(engines):
    engine = engines()
    with kvxfer.Client(engine.transfer.kv_connector_extra_config["socket"]) as client:
        assert engine.daemon == client.address


def test_a_configured_address_goes_before_the_daemons(engines):
    assert engines(peer_address="192.0.2.7:99").daemon == "192.0.2.7:99"


# ---- memory

def test_vllms_allocation_becomes_shared_memory():
    with SharedAllocation() as allocation:
        buffer = torch.zeros(4096, dtype=torch.int8, device=torch.device("cpu"))
        other = torch.zeros((2, 3))
    assert [memory.nbytes for memory in allocation.memories] == [4096]
    assert memories_of({"a": buffer.view(torch.float32)}, allocation.memories) == {
        "a": allocation.memories[0]}
    assert not buffer.any() and other.shape == (2, 3)


def test_tensors_from_elsewhere_are_moved_with_their_content():
    tensors = {"a": torch.arange(64.0), "b": torch.arange(9)}
    memories = memories_of(tensors, [])
    assert memories["a"] is memories["b"]
    memories["a"].offset_of(tensors["a"])
    assert torch.equal(tensors["a"], torch.arange(64.0)) and tensors["b"].sum() == 36


# ---- statistics

def outcome(**fields):
    return Outcome(**{**dict(id="x", role="expect", ok=True, error=None, nbytes=1 << 20,
                             seconds=0.5, transports=("copy",), blocks={}), **fields})


def test_statistics_add_up_over_ranks_and_steps():
    here, there = KvxferStats(), KvxferStats()
    here.record(outcome())
    there.record(outcome(nbytes=3 << 20, seconds=1.5))
    there.record(outcome(ok=False, error=kvxfer.errors.Deadline("late"), nbytes=0, transports=(),
                         blocks={0: [1, 2]}))
    total = KvxferConnector.build_kv_connector_stats(here.take().to_dict())
    words = total.aggregate(there.take()).reduce()
    assert words["Num successful transfers"] == 2 and words["Num failed transfers"] == 1
    assert words["Throughput (MB/s)"] == 2 and words["MB by copy"] == 4
    assert words["failed with DEADLINE"] == 1
    assert here.is_empty() and there.is_empty()


def test_prometheus_gets_transports_and_failures():
    registry = prometheus_client.CollectorRegistry()
    types = {kind: _in(kind, registry) for kind in (
        prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)}

    class Config:
        kv_transfer_config = CONFIG

    metrics = KvxferConnector.build_prom_metrics(Config, types, ["model_name", "engine"],
                                                 {0: ["m", "0"]})
    stats = KvxferStats()
    stats.record(outcome())
    stats.record(outcome(ok=False, error=kvxfer.errors.PeerLost("gone"), nbytes=0, transports=(),
                         blocks={0: [1, 2, 3]}))
    metrics.observe(stats.to_dict())
    labels = {"model_name": "m", "engine": "0"}
    value = registry.get_sample_value
    assert value("vllm:kvxfer_bytes_total", {**labels, "transport": "copy"}) == 1 << 20
    assert value("vllm:kvxfer_failed_transfers_total", {**labels, "status": "PEER_LOST"}) == 1
    assert value("vllm:kvxfer_lost_blocks_total", labels) == 3
    assert value("vllm:kvxfer_transfer_seconds_count", labels) == 1


def _in(kind, registry):
    return lambda **options: kind(registry=registry, **options)


def test_a_step_reports_what_has_ended_in_it(engines):
    prefill, decode = harness.pair(engines)
    _, request = harness.write(prefill, decode, range(100, 150))
    harness.run_to_receipt(prefill, decode, request)
    assert decode.stats.data["bytes"] == [decode.block_bytes() * 4]
    assert decode.stats.data["transports"] == {"copy": decode.block_bytes() * 4}


def test_the_path_is_told_once_per_peer(engines, caplog):
    caplog.set_level(logging.INFO, "vllm.kvxfer")
    prefill, decode = harness.pair(engines)
    for start in (100, 300):
        _, request = harness.write(prefill, decode, range(start, start + 50))
        harness.run(prefill, decode)
    peer = f"127.0.0.1:{prefill.number}/dp0/pp0/tp0"
    lines = [r.getMessage() for r in caplog.records if peer in r.getMessage() and " goes by " in
             r.getMessage()]
    assert lines == [f"kvxfer: KV cache to and from {peer} goes by copy"]
    assert decode.workers[0].paths() == {peer: "copy"}
