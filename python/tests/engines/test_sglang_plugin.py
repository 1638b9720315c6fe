"""How SGLang gets to know the backend: its own plugin mechanism, in a process of its own."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("sglang", reason="needs sglang (tests/engines/sglang/install.sh)")

import sglang_harness  # noqa: E402

START = """
import sys
import sglang_harness
sglang_harness.import_sglang()
"""


def run(code, *, check=True):
    """In a fresh interpreter; its output."""
    env = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(
            [os.path.dirname(sglang_harness.__file__), *filter(None, sys.path)]
        ),
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=env,
        text=True,
        timeout=300,
        capture_output=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_backend_is_a_choice_and_has_four_classes():
    out = run(START + """
from sglang.srt.disaggregation.utils import KVClassType, TransferBackend, get_kv_class
import sglang.srt.managers.scheduler as scheduler, sglang.srt.disaggregation.decode as decode
from sglang.srt.server_args import prepare_server_args
assert scheduler.TransferBackend is TransferBackend and decode.get_kv_class is get_kv_class
backend = TransferBackend("kvxfer")
for kind in ("manager", "sender", "receiver", "bootstrap_server", "kvargs"):
    print(kind, get_kv_class(backend, KVClassType(kind)).__name__)
print("other", get_kv_class(TransferBackend("fake"), KVClassType.SENDER).__name__)
""")
    for line in (
        "manager KvxferKVManager",
        "sender KvxferKVSender",
        "receiver KvxferKVReceiver",
        "bootstrap_server KvxferKVBootstrapServer",
        "kvargs KVArgs",
        "other FakeKVSender",
    ):
        assert line in out


def test_registering_again_does_nothing():
    out = run(START + """
from kvxfer.sglang import plugin
plugin.register(); plugin.register()
from sglang.srt.arg_groups.choices import DISAGG_TRANSFER_BACKEND_CHOICES as choices
print("times", choices.count("kvxfer"))
""")
    assert "times 1" in out


def test_entry_point_is_what_sglang_asks_for():
    from importlib.metadata import entry_points

    found = [one for one in entry_points(group="sglang.srt.plugins") if one.name == "kvxfer"]
    if not found:
        pytest.skip("kvxfer is not installed as a package here, so it has no entry points")
    from kvxfer.sglang import plugin

    assert found[0].load() is plugin.register


def test_launcher_knows_the_backend_without_an_entry_point():
    out = run(
        """
import os, sys, runpy
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
os.environ["SGLANG_PLUGINS"] = "none"
sys.argv = ["launch_server", "--help"]
import sglang_harness
sys.path.append(str(sglang_harness.ROOT / "tests/engines/sglang/standin"))
runpy.run_module("kvxfer.sglang.launch_server", run_name="__main__")
""",
        check=False,
    )
    assert "mooncake_tcp,kvxfer" in out.replace(" ", "").replace("\n", "")


def test_processes_that_make_no_pools_are_spared_the_hooks():
    out = run("""
import os
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
import sys
from kvxfer.sglang import plugin
plugin.register()
from sglang.srt.plugins.hook_registry import HookRegistry
print(sorted(name.rsplit(".", 1)[1] for name in HookRegistry._hooks))
""")
    assert "['TransferBackend', 'get_kv_class']" in out
