"""Types, documentation and the example."""

import inspect
import pathlib
import shutil
import subprocess
import sys

import pytest

import kvxfer
from kvxfer import aio, client, errors, events, layout, region, transfer

HERE = pathlib.Path(__file__).resolve().parents[1]


def test_everything_public_is_documented():
    missing = []
    for module in (aio, client, errors, events, layout, region, transfer):
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.getdoc(thing):
                missing.append(name)
            if not inspect.isclass(thing):
                continue
            for attr, value in vars(thing).items():
                if not attr.startswith("_") and (callable(value) or isinstance(value, property)):
                    if not inspect.getdoc(value) and name != "KvxferError":
                        missing.append(f"{name}.{attr}")
    assert [m for m in missing if not m.endswith((".closed", ".limits"))] == []


def test_example_runs(shared_node):
    script = str(HERE / "examples" / "two_engines.py")
    done = subprocess.run([sys.executable, script, shared_node.socket], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "131072" in done.stdout or "bytes by copy" in done.stdout


def test_readme_shows_the_example():
    example = (HERE / "examples" / "two_engines.py").read_text()
    assert example in (HERE / "README.md").read_text()


def test_mypy_strict(tmp_path):
    """The package as installed, outside of site-packages, where mypy would not report on it."""
    pytest.importorskip("mypy")
    (tmp_path / "kvxfer").mkdir()
    for path in pathlib.Path(kvxfer.__file__).parent.glob("*.py*"):
        if path.is_file():
            shutil.copy(path, tmp_path / "kvxfer" / path.name)
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir=/dev/null",
                           "--config-file", str(HERE / "pyproject.toml")],
                          capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
