"""Fixtures of the tests with vLLM's engines: import the names."""

import pytest

import vllm_harness


@pytest.fixture(scope="session")
def vllm_model(tmp_path_factory):
    return vllm_harness.model_path(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engines(shared_node, vllm_model):
    """engines(role, node=..., ...) makes an engine; all are closed in the end."""
    made = []

    def make(role="kv_producer", node=None, **options):
        made.append(vllm_harness.Engine(node or shared_node, vllm_model, role=role, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
