"""The manager behind an event of SGLang's, which is one of its own process: the daemon waits for
another one that is recorded behind it. On the stand-in for a GPU runtime (KVXFER_STANDIN)."""

from types import SimpleNamespace

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")

import test_gpu  # noqa: E402
from test_wait import Event, Stream, gpu, stall  # noqa: E402, F401

from kvxfer import EventPool, Wait, errors  # noqa: E402
from kvxfer.sglang.manager import KvxferKVManager  # noqa: E402

pytestmark = pytest.mark.skipif(
    not test_gpu.FOLDER, reason="no stand-in GPU runtime: set KVXFER_STANDIN to "
    "BUILD/tests/gpu/standin")


class Side:
    """As torch.cuda.Stream."""

    def __init__(self, gpu):
        self.gpu, self.stream = gpu, Stream(gpu, 4096).stream

    def wait_event(self, event):
        self.gpu.check(self.gpu.cuda.cuStreamWaitEvent(self.stream, event.event, 0))


class SideEvent(Event):
    def record(self, side):
        self.gpu.check(self.gpu.cuda.cuEventRecord(self.event, side.stream))


def test_a_shared_event_stands_behind_sglangs(gpu, stall):
    forward, side = Stream(gpu, 4096), Side(gpu)
    manager = SimpleNamespace(_events=EventPool(lambda: SideEvent(gpu, None)), _after=side)
    own = Event(gpu, forward.stream, interprocess=False)
    stall(True)
    own.record()
    wait = KvxferKVManager._shared(manager, own)
    assert isinstance(wait, Wait) and wait.is_event and not wait.query()
    stall(False)
    gpu.check(gpu.cuda.cuStreamSynchronize(side.stream))
    assert own.query() and wait.query()
    assert KvxferKVManager._shared(manager, None) is None


def test_an_event_that_cannot_be_shared_stays_as_it_is(gpu, caplog):
    def refuse(*stream):
        raise errors.Invalid("no")

    own = Event(gpu, Stream(gpu, 4096).stream, interprocess=False)
    manager = SimpleNamespace(_events=SimpleNamespace(record=refuse), _after=Side(gpu))
    own.record()
    assert KvxferKVManager._shared(manager, own) is own and manager._events is None
    assert KvxferKVManager._shared(manager, own) is own
    assert caplog.text.count("cannot wait for this GPU's events") == 1
