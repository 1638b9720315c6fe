"""Prefill and decode ranks of SGLang as processes of their own, driven call by call.

Every process has SGLang's own classes: published runtime context, memory pools, metadata buffers,
the queues' ``_init_kv_manager`` (with kvxfer's hooks on it) and so KVArgs, and under them kvxfer's
KVManager, KVSender and KVReceiver on a real kvxferd. What is missing is the scheduler: the tests
call what it would. The processes are forked from one that has imported SGLang, because the import
takes long.
"""

import functools
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import time
import traceback

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
CANARY = -7.0
FAILED, BOOTSTRAPPING, WAITING, TRANSFERRING, SUCCESS = range(5)


def import_sglang():
    """SGLang for the CPU, with kvxfer's plugin loaded. Raises ImportError."""
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    os.environ.setdefault("SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL", "2")
    standin = str(ROOT / "tests/engines/sglang/standin")
    if standin not in sys.path:
        sys.path.append(standin)
    import sglang.srt.managers.scheduler  # noqa: F401
    import torch
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    from kvxfer.sglang import plugin

    torch.set_num_threads(1)
    load_plugins()
    plugin.register()  # does nothing where the entry point is installed
    HookRegistry.apply_hooks()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Model:
    """Numbers of a model. ``kind``: mha, mla, swa, mamba, dsa."""

    def __init__(self, kind="mha", *, layers=3, heads=4, dim=8, page=4, tokens=256, **more):
        self.kind = kind
        self.layers = layers
        self.heads = heads
        self.dim = dim
        self.page = page
        self.tokens = tokens
        self.draft_layers = more.pop("draft_layers", 0)
        self.conv_blocks = more.pop("conv_blocks", None)  # mamba: q, k, v dims of the model
        self.kda = more.pop("kda", False)
        self.window = more.pop("window", 8)
        self.rows = more.pop("rows", 64)  # metadata buffers and mamba slots
        self.private = more.pop("private", False)  # made without kvxfer's hook
        assert not more, more

    def config(self):
        """A config.json; only its numbers matter."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": self.heads * self.dim,
            "intermediate_size": 64,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.dim,
            "max_position_embeddings": 4096,
            "torch_dtype": "float32",
        }


# ---- this side: handles of the processes


class RemoteError(Exception):
    """Raised in the rank's process; the text has its traceback."""


class Rank:
    """A process; ``call(name, ...)`` runs a method of its driver there and waits for the result."""

    def __init__(self, make, **options):
        fork = multiprocessing.get_context("fork")
        self.pipe, theirs = fork.Pipe()
        self.process = fork.Process(
            target=_serve, args=(theirs, self.pipe, make, options), daemon=True
        )
        self.process.start()
        theirs.close()
        self.pid = self.process.pid

    def ready(self, timeout=120):
        """Waits until the driver is there. Raises RemoteError where it could not be made."""
        return self._answer(timeout)

    def send(self, name, *args, **kwargs):
        self.pipe.send((name, args, kwargs))

    def call(self, name, *args, timeout=120, **kwargs):
        self.send(name, *args, **kwargs)
        return self._answer(timeout)

    def _answer(self, timeout):
        if not self.pipe.poll(timeout):
            raise RemoteError(f"no answer from process {self.pid} within {timeout} s")
        ok, value = self.pipe.recv()
        if not ok:
            raise RemoteError(value)
        return value

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return functools.partial(self.call, name)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.process.join(30)

    def stop(self):
        if self.process.is_alive():
            try:
                self.call("close", timeout=60)
            except (OSError, EOFError, RemoteError):
                pass
            self.process.join(5)
        if self.process.is_alive():
            self.kill()
        self.pipe.close()


class Engine:
    """All ranks of a prefill or decode engine, each a process."""

    def __init__(
        self, mode, model, node, directory, *, tp=1, pp=1, bootstrap=None, nodes=None, env=None
    ):
        self.mode = mode
        self.model = model
        self.bootstrap = bootstrap or free_port()
        path = pathlib.Path(directory) / f"model-{model.kind}-{model.layers}-{model.heads}"
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(model.config()))
        port = free_port()
        self.ranks = [
            Rank(
                Driver,
                mode=mode,
                model=model,
                path=str(path),
                port=port,
                bootstrap=self.bootstrap,
                tp=t,
                tp_size=tp,
                pp=p,
                pp_size=pp,
                env=env or {},
                socket=(nodes[p * tp + t] if nodes else node).socket,
            )
            for p in range(pp)
            for t in range(tp)
        ]
        try:
            for rank in self.ranks:
                rank.ready()
        except BaseException:
            self.stop()
            raise

    def all(self, name, *args, **kwargs):
        """The call on every rank; they run side by side."""
        for rank in self.ranks:
            rank.send(name, *args, **kwargs)
        return [rank._answer(120) for rank in self.ranks]

    def wait(self, room, *states, timeout=30):
        """Polls as the scheduler does until every rank is in one of the states; returns them."""
        end = time.monotonic() + timeout
        while True:
            found = self.all("poll", room)
            if all(one in states for one in found):
                return found
            assert (
                time.monotonic() < end
            ), f"{self.mode}: room {room} is in {found}, not in {states}"
            time.sleep(0.002)

    def stop(self):
        for rank in self.ranks:
            rank.stop()


class Pair:
    """A prefill and a decode engine, and the calls of one request."""

    def __init__(self, prefill, decode):
        self.prefill = prefill
        self.decode = decode

    @property
    def address(self):
        return f"127.0.0.1:{self.prefill.bootstrap}"

    def open(self, room, n_tokens, *, prefix=0, metadata=True):
        """Both sides know of the request; decode has said where its pages are."""
        self.prefill.all("open", room, self.address)
        self.decode.all("open", room, self.address)
        self.decode.wait(room, WAITING)
        if metadata:
            self.decode.all("ask", room, n_tokens, prefix=prefix)
            self.prefill.wait(room, WAITING)

    def run(self, room, n_tokens, *, prefix=0, chunks=1):
        """A whole request, to the end on both sides; decode has checked the contents."""
        self.open(room, n_tokens, prefix=prefix)
        self.prefill.all("begin", room, n_tokens)
        for i in range(chunks):
            self.prefill.all("chunk", room, i, chunks)
        self.prefill.wait(room, SUCCESS)
        self.decode.wait(room, SUCCESS)
        self.decode.all("check", room)
        self.prefill.all("clear", room)
        self.decode.all("clear", room)


# ---- fixtures: test files import them by name


@pytest.fixture(scope="session")
def sglang_ready():
    import_sglang()


@pytest.fixture
def sglang_engines(sglang_ready):
    """sglang_engines(node, directory, model, prefill=dict(tp=...), decode=dict(...)) makes a pair
    of engines; all are stopped in the end."""
    made = []

    def make(node, directory, model, *, prefill=None, decode=None, decode_model=None):
        for mode, of, options in (
            ("prefill", model, prefill),
            ("decode", decode_model or model, decode),
        ):
            made.append(Engine(mode, of, node, directory, **(options or {})))
        return Pair(*made[-2:])

    yield make
    for engine in made:
        engine.stop()


# ---- the other side: what runs in the processes


def _serve(pipe, parents, make, options):
    parents.close()
    try:
        driver = make(**options)
        pipe.send((True, None))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        os._exit(1)
    while True:
        try:
            name, args, kwargs = pipe.recv()
        except EOFError:
            os._exit(0)
        try:
            pipe.send((True, getattr(driver, name)(*args, **kwargs)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        if name == "close":
            os._exit(0)


def Driver(**options):
    """Made in the rank's process; imported late, because it needs SGLang."""
    import sglang_driver

    return sglang_driver.Driver(**options)
