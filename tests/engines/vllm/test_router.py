"""vllm-router, as it comes from the package index, in place of the proxy of these tests."""

import pathlib
import sys
import urllib.request

import pytest

import traffic
from conftest import Truth
from deployment import Deployment
from processes import wait_until

TOKENS = 16
ROUTER = pathlib.Path(sys.executable).with_name("vllm-router")


@pytest.mark.skipif(not ROUTER.exists(), reason="vllm-router is not installed")
@pytest.mark.parametrize("deployment", [pytest.param({"router": str(ROUTER)}, id="write")],
                         indirect=True)
def test_router_passes_requests(deployment: Deployment, truth: Truth) -> None:
    """Discovery, request ids and kv_transfer_params as that router makes them."""
    wanted = traffic.prompts(50, seed=60, longest=600)
    right = truth.of(deployment.model, wanted, TOKENS)

    def routed() -> bool:
        try:
            with urllib.request.urlopen(f"{deployment.url}/v1/models", timeout=2):
                pass
        except OSError:
            return False
        return not traffic.run(deployment.url, wanted[:1], 2, timeout=20)[0].error
    wait_until("the router knows both engines", 60, routed, 1.0)
    before = deployment.decode.prompt_tokens("local_compute")
    answers = traffic.run(deployment.url, wanted, TOKENS)
    errors = [a.error for a in answers if a.error]
    assert not errors, f"{errors[:3]}\n{deployment.logs()}"
    wrong = [i for i, a in enumerate(answers)
             if not a.tokens or a.tokens != right[i][:len(a.tokens)]]
    assert not wrong, wrong
    assert deployment.decode.prompt_tokens("local_compute") - before <= len(wanted)
    deployment.wait_idle()
