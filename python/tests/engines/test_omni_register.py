"""KvxferConnector becomes known to vLLM-Omni from outside, and is given what the others are."""

import inspect
import logging
import subprocess
import sys

import pytest

pytest.importorskip("vllm_omni", reason="vllm-omni is not installed")
from omni_process import make  # noqa: E402
from vllm_omni.distributed.omni_connectors import (  # noqa: E402
    ConnectorSpec,
    OmniConnectorBase,
    OmniConnectorFactory,
    load_omni_transfer_config,
)
from vllm_omni.distributed.omni_connectors.utils import initialization  # noqa: E402

import kvxfer.vllm_omni  # noqa: E402


@pytest.fixture(autouse=True)
def registered():
    kvxfer.vllm_omni.register()


def deploy(name, socket):
    """A pipeline of three stages over one connector, as vLLM-Omni's deploy YAMLs have it."""
    return load_omni_transfer_config(config_dict={
        "connectors": {"c": {"name": name, "extra": {
            "host": "auto", "zmq_port": 50051, "backend_type": "rdma", "qp_per_transfer": 1,
            "memory_pool_size": 1 << 20, "memory_pool_device": "cpu", "kvxfer_socket": socket}}},
        "stages": [
            {"stage_id": 0, "output_connectors": {"to_stage_1": "c"}},
            {"stage_id": 1, "input_connectors": {"from_stage_0": "c"},
             "output_connectors": {"to_stage_2": "c"}},
            {"stage_id": 2, "input_connectors": {"from_stage_1": "c"}}]})


def test_register_twice_is_once():
    before = OmniConnectorFactory.list_registered_connectors()
    kvxfer.vllm_omni.register()
    assert OmniConnectorFactory.list_registered_connectors() == before
    assert kvxfer.vllm_omni.NAME in before


def test_importing_the_package_needs_no_torch_and_no_vllm():
    code = ("import sys, kvxfer.vllm_omni; "
            "sys.exit(any(m in sys.modules for m in ('torch', 'vllm', 'vllm_omni')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("replace", ["", "MoriTransferEngineConnector"])
def test_plugin_registers_in_a_new_process(replace):
    """As vLLM's loader calls it in an engine process or a worker."""
    code = ("import os; os.environ['KVXFER_OMNI_REPLACE'] = %r; "
            "import kvxfer.vllm_omni as k; k.plugin(); k.plugin(); "
            "from vllm_omni.distributed.omni_connectors import OmniConnectorFactory as f; "
            "assert f._registry[%r or k.NAME] is k._create" % (replace, replace))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plugin_does_nothing_without_vllm_omni():
    code = ("import importlib.util as u, sys; find = u.find_spec; "
            "u.find_spec = lambda name: None if name == 'vllm_omni' else find(name); "
            "import kvxfer.vllm_omni as k; k.plugin(); sys.exit('vllm_omni' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_installed_package_is_loaded_by_vllm_omni():
    from importlib.metadata import entry_points

    if not [e for e in entry_points(group="vllm_omni.general_plugins") if e.name == "kvxfer_omni"]:
        pytest.skip("kvxfer is on the path, but not installed: it has no entry points")
    code = ("from vllm_omni.plugins import load_omni_general_plugins as load; load(); "
            "from vllm_omni.distributed.omni_connectors import OmniConnectorFactory as f; "
            "assert 'KvxferConnector' in f.list_registered_connectors()")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_that_knows_transfer_engines_knows_it():
    import vllm_omni.distributed.omni_connectors.kv_transfer_manager as manager
    from vllm_omni.distributed.omni_connectors.utils import config

    for module in (manager, config, initialization):
        assert kvxfer.vllm_omni.NAME in module.TRANSFER_ENGINE_CONNECTOR_NAMES


def test_base_class_has_nothing_that_is_left_out():
    connector = kvxfer.vllm_omni.KvxferConnector
    assert issubclass(connector, OmniConnectorBase) and not inspect.isabstract(connector)
    theirs = {name for name, _ in inspect.getmembers(OmniConnectorBase, inspect.isfunction)}
    blocking = {"get_with_deadline", "abandon_get"}  # the base class refuses, or does nothing
    assert blocking <= theirs
    assert all(getattr(connector, name) is not getattr(OmniConnectorBase, name)
               for name in blocking)


def test_mori_has_no_public_method_that_is_missing():
    from vllm_omni.distributed.omni_connectors.connectors import mori_transfer_engine_connector

    mori = mori_transfer_engine_connector.MoriTransferEngineConnector
    theirs = {name for name in vars(mori) if not name.startswith("_")}
    assert theirs <= set(dir(kvxfer.vllm_omni.KvxferConnector))


@pytest.mark.parametrize("stage, role, number, put_number", [
    (0, "sender", 50051, 50051), (1, "receiver", None, 50052), (2, "receiver", None, 50053)])
def test_stage_is_given_its_role_and_number(shared_node, stage, role, number, put_number):
    """By vLLM-Omni's own functions, as its chunk adapter calls them."""
    from vllm_omni.engine.stage_init_utils import get_stage_connector_spec

    spec = get_stage_connector_spec(deploy(kvxfer.vllm_omni.NAME, shared_node.socket), stage, True)
    resolved = initialization.resolve_connector_spec(
        ConnectorSpec(spec["name"], spec["extra"]), stage_id=stage, role=spec["extra"]["role"])
    connector = OmniConnectorFactory.create_connector(resolved)
    try:
        assert (connector.role, connector.stage_id) == (role, stage)
        assert connector._config.number == number
        assert connector._config.number_for_put() == put_number
        if role == "receiver":
            assert connector.sender_zmq_port == 50051 + stage - 1
    finally:
        connector.close()


def test_number_depends_on_replica_and_rank(shared_node):
    spec = ConnectorSpec(kvxfer.vllm_omni.NAME, {"zmq_port": 50051})
    numbers = {initialization.resolve_connector_spec(
        spec, stage_id=0, role="sender", local_rank=rank, replica_id=replica,
        purpose=purpose).extra["zmq_port"]
        for rank in range(4) for replica in range(2)
        for purpose in ("request_forwarding", "kv_transfer")}
    assert len(numbers) == 16


def test_mori_yaml_runs_unchanged(shared_node, monkeypatch):
    name = "MoriTransferEngineConnector"
    registry = dict(OmniConnectorFactory._registry)
    monkeypatch.setattr(OmniConnectorFactory, "_registry", registry)
    kvxfer.vllm_omni.register(replace=name)
    connectors = initialization.create_connectors_from_config(
        deploy(name, shared_node.socket).connectors, caller_stage_id=1)
    assert all(isinstance(c, kvxfer.vllm_omni.KvxferConnector) for c in connectors.values())
    for connector in connectors.values():
        connector.close()


def test_replacing_what_is_not_there_is_an_error():
    with pytest.raises(RuntimeError, match="NoSuchConnector"):
        kvxfer.vllm_omni.register(replace="NoSuchConnector")


def test_keys_of_other_transports_are_named_in_one_line(shared_node):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("vllm_omni.kvxfer")
    log.addHandler(handler)
    try:
        make(shared_node.socket, zmq_port=50980, backend_type="xgmi", xgmi_num_streams=64,
             qp_per_transfer=1).close()
    finally:
        log.removeHandler(handler)
    ignored = [line for line in lines if "ignores" in line]
    assert len(ignored) == 1
    assert all(key in ignored[0] for key in ("backend_type", "xgmi_num_streams"))


def test_pool_on_a_gpu_says_what_to_set(shared_node):
    with pytest.raises(ValueError, match="memory_pool_device.*'cpu'"):
        make(shared_node.socket, memory_pool_device="cuda")
