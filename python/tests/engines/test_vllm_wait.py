"""The connector's sender with a KV cache on a GPU: an event of the daemon's for each piece of a
step, and nobody synchronises. On the stand-in for a GPU runtime (KVXFER_STANDIN)."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import test_gpu  # noqa: E402
from pd_ranks import outcome  # noqa: E402
from test_wait import (  # noqa: E402, F401
    NBYTES, SHAPE, Event, Handle, Stream, address, gpu, node, rank_of, stall)

from kvxfer import EventPool, errors, pd  # noqa: E402
from kvxfer.vllm import sending  # noqa: E402
from kvxfer.vllm.config import Config  # noqa: E402
from kvxfer.vllm.meta import Send, StepMeta  # noqa: E402

pytestmark = pytest.mark.skipif(
    not test_gpu.FOLDER, reason="no stand-in GPU runtime: set KVXFER_STANDIN to "
    "BUILD/tests/gpu/standin")
EVERYTHING = list(range(SHAPE[0]))


@pytest.fixture
def sender(gpu, node, monkeypatch):
    """Of a rank on device 0, with the stream of its kernels."""
    stream = Stream(gpu, 4 * NBYTES)
    stream.staged[:] = np.random.default_rng(5).integers(0, 256, 4 * NBYTES, "uint8")
    monkeypatch.setattr(EventPool, "of_torch", classmethod(
        lambda cls, device: cls(lambda: Event(gpu, stream.stream))))
    rank, tensors = rank_of(gpu, node, "prefill", 0)
    layout = SimpleNamespace(layers={f"l{i}": (0, i) for i in range(4)}, origin={0: 0},
                             expand=lambda group, run: run)
    made = sending.Sender(rank, layout, Config(stream_layers=1), "cuda")
    yield made, rank, tensors, stream
    rank.close()


def step(gpu, made, tensors, stream):
    meta = StepMeta(sends=[Send("a", "r", {0: (0, EVERYTHING)}, True)])
    gpu.use(0)
    for i, tensor in enumerate(tensors):
        stream.launch(address(tensor), i * NBYTES, NBYTES)
        made.layer(meta, f"l{i}")
    made.rest(meta)


def test_layers_are_sent_behind_their_events(gpu, node, sender, stall):
    made, rank, tensors, stream = sender
    decode, there = rank_of(gpu, node, "decode", 1)
    decode.expect("r", pd.Endpoint(rank.address, "prefill"), {0: (0, EVERYTHING)}, deadline=20)
    time.sleep(0.05)
    stall(True)
    begin = time.monotonic()
    step(gpu, made, tensors, stream)
    assert time.monotonic() - begin < 1  # it has not waited for the device
    time.sleep(0.1)
    assert not decode.finished() and not rank._hub._polled
    with node.client() as client:
        assert client.query("status")["waits"] == 4
    stall(False)
    assert outcome(Handle(decode)).error is None and outcome(Handle(rank)).error is None
    for i, tensor in enumerate(there):
        got = gpu.get(address(tensor), NBYTES, "uint8")
        assert np.array_equal(got, stream.staged[i * NBYTES:(i + 1) * NBYTES]), i
    decode.close()


def test_events_that_cannot_be_shared_are_asked_for_in_this_process(gpu, node, sender, monkeypatch,
                                                                   caplog):
    made, rank, tensors, stream = sender

    def broken(*stream):
        raise errors.Invalid("no")

    class Own:
        def __init__(self, device):
            self.event = Event(gpu, stream.stream, interprocess=False)

        def record(self):
            self.event.record()

        def query(self):
            return self.event.query()

    monkeypatch.setattr(made._events, "record", broken)
    monkeypatch.setattr(sending.torch, "Event", Own)
    decode, there = rank_of(gpu, node, "decode", 1)
    decode.expect("r", pd.Endpoint(rank.address, "prefill"), {0: (0, EVERYTHING)}, deadline=20)
    step(gpu, made, tensors, stream)
    assert outcome(Handle(decode)).error is None and outcome(Handle(rank)).error is None
    assert np.array_equal(gpu.get(address(there[3]), NBYTES, "uint8"), stream.staged[3 * NBYTES:])
    assert caplog.text.count("cannot wait for this GPU's events") == 1
    decode.close()
