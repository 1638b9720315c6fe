"""One model and its answers from one server, for all tests."""

import json
import random

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    import servers

    return servers.make_model(tmp_path_factory.mktemp("model"))


def prompts(n=24, longest=200):
    chance = random.Random(1)
    return [
        [chance.randrange(3, 500) for _ in range(chance.randrange(1, longest))] for _ in range(n)
    ]


@pytest.fixture(scope="session")
def reference(model, tmp_path_factory):
    """[(prompt, greedy tokens of one server without disaggregation)]."""
    import servers

    directory = tmp_path_factory.mktemp("reference")
    server = servers.Server("null", model, directory, launcher="sglang.launch_server")
    try:
        server.ready()
        pairs = [(ids, server.generate(ids)["output_ids"]) for ids in prompts()]
    finally:
        server.stop()
    (directory / "reference.json").write_text(json.dumps(pairs))
    return pairs
