"""KvxferConnector: processes and daemons die, time runs out, connectors close in the middle."""

import os
import signal
import threading
import time

import pytest

pytest.importorskip("vllm_omni", reason="vllm-omni is not installed")
from omni_process import StageProcess, make, pattern  # noqa: E402
from omni_raw import RawGetter  # noqa: E402

from kvxfer.vllm_omni import wire  # noqa: E402

BIG = 4 << 20


def until(condition, seconds=15):
    """Waits for something; fails with what it gives when it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, condition()
        time.sleep(0.01)


@pytest.fixture
def owner(node):
    """A connector of this process that puts, with a daemon that the test may kill."""
    connector = make(node.socket, zmq_port=50051, stage_id=0, buffer_ttl_seconds=0.3)
    yield connector
    connector.close()


@pytest.fixture
def raw(node):
    getter = RawGetter(node, nbytes=BIG)
    yield getter
    getter.close()


def pool(connector):
    return connector.health()["pool"]


def test_what_nobody_fetches_expires(owner):
    owner.put("0", "1", "k", pattern(BIG))
    until(lambda: pool(owner)["used"] == 0)
    assert pool(owner)["expired"] == 1


def test_claimed_buffer_outlives_its_time(owner, raw):
    """The getter is slower than buffer_ttl_seconds: its bytes are there all the same, also when
    the pool is short of room."""
    owner.put("0", "1", "k", pattern(BIG, 1))
    found = raw.find(owner._stage.name)
    grant = raw.claim(found, "k@0_1")
    time.sleep(1.0)
    for i in range(4):
        owner.put("0", "1", f"other{i}", pattern(BIG, 2))
    assert raw.read(found, grant) == pattern(BIG, 1)
    until(lambda: pool(owner)["pinned"] == 0)
    assert isinstance(raw.claim(found, "k@0_1", claim=2), wire.Wait)


def test_claimed_buffer_survives_cleanup_and_replacement(owner, raw):
    owner.put("0", "1", "k", pattern(BIG, 1))
    found = raw.find(owner._stage.name)
    grant = raw.claim(found, "k@0_1")
    owner.cleanup("k")
    owner.put("0", "1", "k", pattern(BIG, 2))
    assert raw.read(found, grant) == pattern(BIG, 1)
    until(lambda: pool(owner)["pinned"] == 0)
    assert raw.read(found, raw.claim(found, "k@0_1", claim=2)) == pattern(BIG, 2)


def test_read_of_fewer_bytes_is_not_taken_for_the_whole(owner, raw):
    owner.put("0", "1", "k", pattern(BIG, 1))
    found = raw.find(owner._stage.name)
    grant = raw.claim(found, "k@0_1")
    raw.read(found, grant, BIG - 1)
    until(lambda: pool(owner)["pinned"] == 0)
    assert isinstance(raw.claim(found, "k@0_1", claim=2), wire.Grant)


def test_getter_that_expects_another_size_is_refused(owner, raw):
    owner.put("0", "1", "k", pattern(BIG, 1))
    answer = raw.claim(raw.find(owner._stage.name), "k@0_1", expected=BIG + 1)
    assert isinstance(answer, wire.Refuse) and str(BIG + 1) in answer.text


def test_dead_getter_gives_its_claim_to_the_next(node, owner, raw):
    owner.put("0", "1", "k", pattern(BIG, 1))
    first = RawGetter(node, "omni/pool/first")
    grant = first.claim(first.find(owner._stage.name), "k@0_1")
    found = raw.find(owner._stage.name)
    assert raw.claim(found, "k@0_1", claim=2) == wire.Wait(2, True)
    first.close()
    second = raw.answer(2)
    assert second.put == grant.put
    assert raw.read(found, second) == pattern(BIG, 1)


def test_message_that_is_not_ours_is_ignored(owner, raw):
    found = raw.find(owner._stage.name)
    found.post(b"\x07garbage")
    owner.put("0", "1", "k", b"small")
    assert raw.claim(found, "k@0_1").data == b"small"


@pytest.mark.parametrize("nbytes", [1000, BIG])
def test_killed_sender_is_told_to_the_getter(node, nbytes):
    sender = StageProcess(node.socket, zmq_port=50060, stage_id=0)
    getter = make(node.socket, role="receiver", sender_host="127.0.0.1", sender_zmq_port=50060)
    _, _, metadata = sender.put_bytes("k", nbytes)
    assert getter.get("0", "1", "not there") is None
    sender.kill()
    begin = time.monotonic()
    assert getter.get("0", "1", "k", metadata) is None
    assert time.monotonic() - begin < 8
    assert getter.get("0", "1", "not there") is None
    until(lambda: pool(getter)["used"] == 0)
    getter.close()


def test_getter_that_waits_hears_of_the_senders_death(node):
    sender = StageProcess(node.socket, zmq_port=50061, stage_id=0)
    getter = make(node.socket, role="receiver", sender_host="127.0.0.1", sender_zmq_port=50061)
    _, _, metadata = sender.put_bytes("k", BIG)
    metadata = {**metadata, "data_size": None}
    timer = threading.Timer(0.3, sender.kill)
    timer.start()
    begin = time.monotonic()
    deadline = begin + 30
    assert getter.get_with_deadline("0", "1", "other", metadata, deadline=deadline) is None
    assert time.monotonic() - begin < 8
    timer.join()
    getter.close()


def test_restarted_sender_is_found_again(node):
    getter = make(node.socket, role="receiver", sender_host="127.0.0.1", sender_zmq_port=50062)
    for i in range(2):
        sender = StageProcess(node.socket, zmq_port=50062, stage_id=0)
        sender.put_bytes(f"k{i}", BIG, i)
        got = getter.get_with_deadline("0", "1", f"k{i}", deadline=time.monotonic() + 10)
        assert got is not None and got[0].to_bytes() == pattern(BIG, i)
        got[0].release()
        sender.kill()
    getter.close()


def test_killed_getter_leaves_the_data_for_another(node):
    sender = make(node.socket, zmq_port=50063, stage_id=0)
    getters = [StageProcess(node.socket, role="receiver", sender_host="127.0.0.1",
                            sender_zmq_port=50063) for _ in range(2)]
    for i in range(50):
        sender.put("0", "1", f"k{i}", pattern(300000, i))
    getters[0].send("gets", "k", 50, 300000, 5)
    time.sleep(0.01)
    getters[0].kill()
    until(lambda: pool(sender)["pinned"] == 0)
    left = [int(key[1:].split("@")[0]) for key in list(sender._stage.store._entries)]
    assert left
    for i in left:
        buffer, _ = getters[1].get_within(10, "0", "1", f"k{i}")
        assert buffer == pattern(300000, i)
    until(lambda: pool(sender)["used"] == 0)
    getters[1].stop()
    sender.close()


def test_stopped_getter_does_not_free_what_it_claimed(node):
    """SIGSTOP stops the process, not the READ that its daemon does for it."""
    sender = make(node.socket, zmq_port=50064, stage_id=0, buffer_ttl_seconds=0.2)
    getter = StageProcess(node.socket, role="receiver", sender_host="127.0.0.1",
                          sender_zmq_port=50064)
    getter.get("0", "1", "warm")
    for i in range(3):
        sender.put("0", "1", f"k{i}", pattern(BIG, i))
    getter.send("gets", "k", 3, BIG, 10)
    getter.kill(signal.SIGSTOP)
    time.sleep(1)
    getter.kill(signal.SIGCONT)
    right = getter.result()
    assert right == 3 - pool(sender)["expired"]
    getter.stop()
    sender.close()


def test_put_data_survives_the_daemon(node):
    """Killed and started again: the client connects again, the pool is registered again, and
    what had been put is fetched."""
    sender = make(node.socket, zmq_port=50065, stage_id=0)
    getter = StageProcess(node.socket, role="receiver", sender_host="127.0.0.1",
                          sender_zmq_port=50065)
    _, _, small = sender.put("0", "1", "small", pattern(1000, 1))
    _, _, large = sender.put("0", "1", "large", pattern(BIG, 2))
    assert getter.get("0", "1", "warm") is None
    node.kill()
    until(lambda: sender.health()["status"] == "unhealthy")
    ok, _, during = sender.put("0", "1", "during", pattern(BIG, 3))
    assert ok
    getter.send("get", "0", "1", "large", large)  # waits for the daemon, too
    time.sleep(0.3)
    node.start()
    assert getter.result() == (pattern(BIG, 2), BIG)
    assert getter.get("0", "1", "small", small) == (pattern(1000, 1), 1000)
    assert getter.get("0", "1", "during", during) == (pattern(BIG, 3), BIG)
    until(lambda: sender.health()["status"] == "healthy")
    until(lambda: pool(sender)["used"] == 0)
    getter.stop()
    sender.close()


def test_get_while_the_daemon_is_gone_is_none_at_once(node):
    getter = make(node.socket, role="receiver", sender_host="127.0.0.1", sender_zmq_port=50066)
    node.kill()
    until(lambda: getter.health()["status"] == "unhealthy")
    begin = time.monotonic()
    assert getter.get("0", "1", "k") is None
    assert time.monotonic() - begin < 0.5
    getter.close()


def test_daemon_killed_under_load_loses_nothing(node):
    sender = StageProcess(node.socket, zmq_port=50067, stage_id=0, memory_pool_size=64 << 20)
    getter = StageProcess(node.socket, role="receiver", sender_host="127.0.0.1",
                          sender_zmq_port=50067)
    sender.puts("k", 60, 1 << 20)
    getter.send("gets", "k", 60, 1 << 20, 30)
    time.sleep(0.02)
    node.kill()
    node.start()
    assert getter.result(120) == 60
    getter.stop()
    sender.stop()


def test_close_of_the_owner_ends_gets(node):
    sender = make(node.socket, zmq_port=50068, stage_id=0)
    getter = StageProcess(node.socket, role="receiver", sender_host="127.0.0.1",
                          sender_zmq_port=50068)
    _, _, metadata = sender.put("0", "1", "k", pattern(BIG))
    sender.close()
    begin = time.monotonic()
    assert getter.get("0", "1", "k", metadata) is None
    assert time.monotonic() - begin < 8
    getter.stop()


def test_close_of_the_getter_ends_its_gets(node):
    getter = make(node.socket, role="receiver", sender_host="127.0.0.1", sender_zmq_port=50069)
    other = make(node.socket, role="receiver", sender_host="127.0.0.1", sender_zmq_port=50069)
    results = []
    thread = threading.Thread(target=lambda: results.append(getter.get_with_deadline(
        "0", "1", "k", deadline=time.monotonic() + 30)))
    thread.start()
    time.sleep(0.1)
    getter.close()
    thread.join(5)
    assert results == [None]
    assert other.health()["status"] == "healthy"
    other.close()


def test_close_under_load_leaves_the_other_connector_alone(node):
    """Two connectors of one process share the pool; one closes in the middle of its gets."""
    sender = StageProcess(node.socket, zmq_port=50070, stage_id=0, memory_pool_size=64 << 20)
    pair = [make(node.socket, role="receiver", sender_host="127.0.0.1", sender_zmq_port=50070)
            for _ in range(2)]
    sender.puts("a", 30, 1 << 20)
    sender.puts("b", 30, 1 << 20)
    stop = threading.Event()

    def run():
        for i in range(30):
            try:
                got = pair[0].get_with_deadline("0", "1", f"a{i}", deadline=time.monotonic() + 5)
            except RuntimeError:  # closed
                break
            if got is not None:
                got[0].release()
        stop.set()

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.01)
    pair[0].close()
    for i in range(30):
        buffer, _ = pair[1].get_with_deadline("0", "1", f"b{i}", deadline=time.monotonic() + 10)
        assert buffer.to_bytes() == pattern(1 << 20, i)
        buffer.release()
    thread.join(20)
    assert stop.is_set()
    until(lambda: pool(pair[1])["used"] == 0)
    pair[1].close()
    sender.stop()


def test_endpoint_number_of_another_process_is_refused(node, monkeypatch):
    monkeypatch.setattr("kvxfer.vllm_omni.stage._TAKEN_S", 0.3)
    sender = StageProcess(node.socket, zmq_port=50071, stage_id=0)
    with pytest.raises(ValueError, match="50071"):
        make(node.socket, zmq_port=50071)
    sender.stop()


def test_no_daemon_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="kvxfer"):
        make(str(tmp_path / "none.sock"))


def test_forked_child_has_its_own(node):
    """A process that forks keeps its connector; the child makes one of its own."""
    sender = make(node.socket, zmq_port=50072)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            mine = make(node.socket, zmq_port=50073)
            status = 0 if mine._stage is not sender._stage and mine.put(
                "0", "1", "child", b"x" * 9000)[0] else 2
            mine.close()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    ok, _, metadata = sender.put("0", "1", "parent", b"y" * 9000)
    buffer, _ = sender.get("0", "1", "parent", metadata)
    assert buffer.to_bytes() == b"y" * 9000
    buffer.release()
    sender.close()
