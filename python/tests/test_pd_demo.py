"""The demo with a real model: python/examples/pd_demo. Needs torch and transformers."""

import os
import pathlib
import subprocess
import sys

import pytest

from conftest import find_daemon

DEMO = pathlib.Path(__file__).resolve().parents[1] / "examples" / "pd_demo"

for _needed in ("torch", "transformers"):
    pytest.importorskip(_needed, reason=f"the model demo needs {_needed}")


def run(*args):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "KVXFERD": find_daemon()}
    return subprocess.run([sys.executable, str(DEMO), "--prompts", "6", *args], env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=500)


@pytest.mark.parametrize("model, tp", [("qwen3", "1:2"), ("llama", "2:1")])
def test_tokens_are_those_of_one_process(model, tp):
    done = run("--models", model, "--tp", tp)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("6/6") == 6  # by layer, by chunk, READ; on one node and between two
    for transport in ("copy", "fabric"):
        assert transport in done.stdout


def test_a_block_that_was_changed_is_noticed():
    done = run("--models", "qwen3", "--tp", "1:1", "--self-test")
    assert done.returncode == 1 and done.stdout.count("5/6") == 6, done.stdout
