"""KvxferConnector: put in one process, get in another, through a real daemon of one node."""

import threading
import time

import pytest

pytest.importorskip("vllm_omni", reason="vllm-omni is not installed")
pytest.importorskip("torch", reason="torch is not installed")
import torch  # noqa: E402
from omni_process import StageProcess, make, pattern  # noqa: E402

from kvxfer.vllm_omni import SizeMismatch, wire  # noqa: E402

PORT = 50051


@pytest.fixture(scope="module")
def sender(shared_node):
    """A stage process that puts."""
    stage = StageProcess(shared_node.socket, role="sender", zmq_port=PORT, stage_id=0)
    yield stage
    stage.stop()


@pytest.fixture
def receiver(shared_node):
    """A connector of this process that gets; its pool is empty again afterwards."""
    connector = make(shared_node.socket, role="receiver", sender_host="127.0.0.1",
                     sender_zmq_port=PORT, stage_id=1, from_stage=0)
    yield connector
    health = connector.health()
    connector.close()
    assert health["pool"]["used"] == 0, health


def sent(sender, key, data):
    ok, size, metadata = sender.put("0", "1", key, data)
    assert ok
    return size, metadata


def settled(sender, seconds=5):
    """The owner's pool once nothing is in it, or after some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pool = sender.health()["pool"]
        if pool["used"] == pool["pinned"] == pool["waiting_for_getter"] == 0:
            break
        time.sleep(0.01)
    return {key: pool[key] for key in ("used", "pinned", "waiting_for_getter")}


EMPTY = {"used": 0, "pinned": 0, "waiting_for_getter": 0}


@pytest.mark.parametrize("nbytes", [
    1, 3300, wire.INLINE_MAX, wire.INLINE_MAX + 1, 4096, 4097, 1611700, 15 << 20])
@pytest.mark.parametrize("with_metadata", [True, False])
def test_bytes_arrive_whole(sender, receiver, nbytes, with_metadata):
    key = f"bytes-{nbytes}-{with_metadata}"
    ok, size, metadata = sender.put_bytes(key, nbytes, 3)
    assert ok and size == nbytes == metadata["data_size"] and metadata["is_fast_path"]
    buffer, got = receiver.get("0", "1", key, metadata if with_metadata else None)
    assert got == nbytes
    assert buffer.to_bytes() == pattern(nbytes, 3)
    buffer.release()
    assert settled(sender) == EMPTY


@pytest.mark.parametrize("tensor", [
    torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    torch.arange(60000, dtype=torch.float32).reshape(200, 300),
    torch.arange(60000, dtype=torch.int64).reshape(200, 300).t(),  # not contiguous
    torch.tensor(5.0),
    torch.zeros(4096, dtype=torch.bool)], ids=["small", "large", "transposed", "scalar", "bool"])
def test_tensor_arrives_without_serialisation(sender, receiver, tensor):
    size, metadata = sent(sender, "tensor", tensor)
    assert size == tensor.nbytes and metadata["is_fast_path"]
    buffer, got = receiver.get("0", "1", "tensor", metadata)
    assert got == tensor.nbytes
    assert torch.equal(buffer.as_tensor(tensor.dtype, tuple(tensor.shape)), tensor)
    buffer.release()


@pytest.mark.parametrize("numbers", [3, 300000])
def test_object_arrives_by_the_packages_serializer(sender, receiver, numbers):
    payload = {"embed": {"decode": torch.arange(numbers)}, "meta": {"finished": False},
               "ids": [1, 2, 3], "text": "ü"}
    _, metadata = sent(sender, "object", payload)
    assert not metadata["is_fast_path"]
    got, _ = receiver.get("0", "1", "object", metadata)
    assert torch.equal(got["embed"]["decode"], payload["embed"]["decode"])
    assert (got["meta"], got["ids"], got["text"]) == ({"finished": False}, [1, 2, 3], "ü")


@pytest.mark.parametrize("nothing", [b"", torch.empty(0)])
def test_nothing_is_not_put(sender, nothing):
    assert sender.put("0", "1", "nothing", nothing) == (False, 0, None)


def test_object_that_cannot_be_serialised_is_not_put(shared_node):
    connector = make(shared_node.socket, zmq_port=50990)
    assert connector.put("0", "1", "lock", {"lock": threading.Lock()}) == (False, 0, None)
    assert connector.health()["errors"] == 1
    connector.close()


def test_managed_buffer_of_the_pool_is_not_copied(shared_node, receiver):
    connector = make(shared_node.socket, zmq_port=50991, memory_pool_size=8 << 20)
    buffer = connector._stage.pool.alloc(1 << 20)
    buffer.tensor.fill_(7)
    ok, _, metadata = connector.put("0", "1", "zero-copy", buffer)
    assert ok and connector.health()["pool"]["buffers"] == 1
    buffer.release()  # the pin keeps it until it has been read
    other = [connector._stage.pool.alloc(1 << 20) for _ in range(7)]
    for one in other:
        one.tensor.fill_(9)
    got, _ = receiver.get("0", "1", "zero-copy", metadata)
    assert bool((got.tensor == 7).all())
    got.release()
    for one in other:
        one.release()
    assert settled(connector) == EMPTY
    connector.close()


def test_get_of_what_is_not_there_is_none_at_once(sender, receiver):
    receiver.get("0", "1", "warm")
    begin = time.monotonic()
    assert receiver.get("0", "1", "never put") is None
    assert time.monotonic() - begin < 0.5


def test_polling_sends_one_message(sender, receiver):
    for _ in range(200):
        assert receiver.get("0", "1", "polled") is None
    assert sender.health()["pool"]["claims_waiting"] <= 3  # of this and earlier tests
    _, metadata = sent(sender, "polled", b"x" * 100000)
    until = time.monotonic() + 5
    got = None
    while got is None and time.monotonic() < until:
        got = receiver.get("0", "1", "polled")
    assert got is not None and got[1] == 100000
    got[0].release()


def test_get_with_deadline_waits_for_the_put(sender, receiver):
    sender.send("start", "puts", "late", 1, 5000)
    begin = time.monotonic()
    buffer, _ = receiver.get_with_deadline("0", "1", "late0", deadline=begin + 10)
    assert buffer.to_bytes() == pattern(5000, 0)
    buffer.release()
    sender.result()
    sender.join()


def test_get_with_deadline_gives_up_in_time(sender, receiver):
    begin = time.monotonic()
    assert receiver.get_with_deadline("0", "1", "no", deadline=begin + 0.2) is None
    assert 0.15 < time.monotonic() - begin < 1.0
    receiver.abandon_get("no")
    until = time.monotonic() + 5
    while receiver.health()["fetches"]["waiting"] and time.monotonic() < until:
        time.sleep(0.01)
    assert "no@0_1" not in receiver._stage.fetches._by_key


def test_metadata_with_another_size_is_a_clear_error(sender, receiver):
    _, metadata = sent(sender, "sized", b"x" * 5000)
    with pytest.raises(SizeMismatch, match="5000.*4999"):
        receiver.get("0", "1", "sized", {**metadata, "data_size": 4999})
    got, size = receiver.get("0", "1", "sized", metadata)  # nothing was lost
    assert size == 5000
    got.release()


def test_get_after_the_first_get_finds_nothing(sender, receiver):
    _, metadata = sent(sender, "once", b"x" * 5000)
    receiver.get("0", "1", "once", metadata)[0].release()
    begin = time.monotonic()
    assert receiver.get("0", "1", "once") is None
    assert time.monotonic() - begin < 2


def test_get_without_a_number_says_what_is_missing(shared_node):
    connector = make(shared_node.socket, role="receiver", sender_host="127.0.0.1")
    with pytest.raises(RuntimeError, match="sender_zmq_port"):
        connector.get("0", "1", "key")
    connector.update_sender_info("127.0.0.1", 50992)
    assert connector.get("0", "1", "key") is None  # nobody has that number yet
    connector.close()


def test_cleanup_forgets_what_was_put(sender, receiver):
    sent(sender, "cleaned", b"x" * 100000)
    sender.cleanup("cleaned")
    assert settled(sender) == EMPTY
    assert receiver.get("0", "1", "cleaned") is None


def test_put_again_replaces(sender, receiver):
    sent(sender, "twice", b"a" * 6000)
    _, metadata = sent(sender, "twice", b"b" * 7000)
    buffer, size = receiver.get("0", "1", "twice", metadata)
    assert size == 7000 and buffer.to_bytes() == b"b" * 7000
    buffer.release()
    assert settled(sender) == EMPTY


def test_stages_are_part_of_the_key(sender, receiver):
    sender.put("0", "2", "edge", b"two" * 3000)
    sent(sender, "edge", b"one" * 3000)
    one, _ = receiver.get("0", "1", "edge")
    two, _ = receiver.get("0", "2", "edge")
    assert (one.to_bytes()[:3], two.to_bytes()[:3]) == (b"one", b"two")
    one.release()
    two.release()


def test_many_threads_on_both_sides(sender, receiver):
    """8 getters for 25 objects each, some asked for before they are put."""
    for i in range(4):
        sender.start("puts", f"mt{i}-", 50, 40000 if i % 2 else 1000)
    right = []

    def run(prefix, nbytes, first):
        for i in range(first, 50, 2):
            got = receiver.get_with_deadline("0", "1", f"{prefix}{i}",
                                             deadline=time.monotonic() + 30)
            right.append(got is not None and got[0].to_bytes() == pattern(nbytes, i))
            if got is not None:
                got[0].release()

    threads = [threading.Thread(target=run, args=(f"mt{i}-", 40000 if i % 2 else 1000, first))
               for i in range(4) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert right == [True] * 200
    assert all(ok for results in sender.join() for ok, _, _ in results)
    assert settled(sender) == EMPTY


def test_two_threads_for_one_key_get_it_once(sender, receiver):
    results = []

    def run():
        results.append(receiver.get_with_deadline("0", "1", "shared",
                                                  deadline=time.monotonic() + 1))
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    sent(sender, "shared", b"x" * 9000)
    for thread in threads:
        thread.join(10)
    got = [result for result in results if result is not None]
    assert len(got) == 1 and got[0][1] == 9000
    got[0][0].release()


def test_full_pool_makes_put_wait_for_the_getter(shared_node, receiver):
    connector = make(shared_node.socket, zmq_port=50993, memory_pool_size=1 << 20,
                     kvxfer_put_wait_seconds=10)
    _, _, first = connector.put("0", "1", "full0", b"a" * (700 << 10))
    done = []
    thread = threading.Thread(
        target=lambda: done.append(connector.put("0", "1", "full1", b"b" * (700 << 10))))
    thread.start()
    time.sleep(0.1)
    assert not done
    receiver.get("0", "1", "full0", first)[0].release()
    thread.join(10)
    assert done and done[0][0]
    buffer, _ = receiver.get("0", "1", "full1", done[0][2])
    assert buffer.to_bytes() == b"b" * (700 << 10)
    buffer.release()
    connector.close()


def test_full_pool_says_so_in_time(shared_node):
    connector = make(shared_node.socket, zmq_port=50994, memory_pool_size=1 << 20,
                     kvxfer_put_wait_seconds=0.2)
    connector.put("0", "1", "f0", b"a" * (700 << 10))
    begin = time.monotonic()
    assert connector.put("0", "1", "f1", b"b" * (700 << 10)) == (False, 0, None)
    assert time.monotonic() - begin < 2
    connector.close()


def test_object_larger_than_the_pool_fails_at_once(shared_node):
    connector = make(shared_node.socket, zmq_port=50995, memory_pool_size=1 << 20)
    begin = time.monotonic()
    assert connector.put("0", "1", "huge", b"a" * (2 << 20)) == (False, 0, None)
    assert time.monotonic() - begin < 0.5
    connector.close()


def test_getters_full_pool_holds_the_bytes_at_the_owner(sender, shared_node):
    getter = make(shared_node.socket, role="receiver", sender_host="127.0.0.1",
                  sender_zmq_port=PORT, memory_pool_size=1 << 20)
    for i in range(2):
        sender.put_bytes(f"room{i}", 700 << 10, i)
    first, _ = getter.get("0", "1", "room0")
    assert getter.get("0", "1", "room1") is None
    first.release()
    second, _ = getter.get("0", "1", "room1")
    assert second.to_bytes() == pattern(700 << 10, 1)
    second.release()
    getter.close()


def test_same_process_puts_and_gets(shared_node):
    first = make(shared_node.socket, zmq_port=50996, stage_id=0)
    second = make(shared_node.socket, role="receiver", sender_host="127.0.0.1",
                  sender_zmq_port=50996)
    assert first._stage is second._stage
    for nbytes in (100, 100000):
        _, _, metadata = first.put("0", "1", "self", pattern(nbytes))
        buffer, _ = second.get("0", "1", "self", metadata)
        assert buffer.to_bytes() == pattern(nbytes)
        buffer.release()
    first.close()
    second.close()


def test_health_tells_daemon_pool_peers_and_path(sender, receiver):
    _, metadata = sent(sender, "health", b"x" * 100000)
    receiver.get("0", "1", "health", metadata)[0].release()
    health = receiver.health()
    assert health["status"] == "healthy" and health["daemon"]["connected"]
    assert health["pool"]["bytes"] == 16 << 20 and health["pool"]["used"] == 0
    peer, = [p for p in health["peers"] if p["bytes"]]
    assert peer["up"] and peer["path"] == "copy" and peer["node"] == "this node"


def test_transfers_show_the_key(shared_node, sender, receiver):
    _, metadata = sent(sender, "chatcmpl-77_0_3", b"x" * 100000)
    receiver.get("0", "1", "chatcmpl-77_0_3", metadata)[0].release()
    with shared_node.client() as client:
        assert "chatcmpl-77_0_3@0_1" in str(client.query("transfers"))


def test_closed_connector_refuses(shared_node):
    connector = make(shared_node.socket, zmq_port=50997)
    connector.close()
    connector.close()
    assert connector.health()["status"] == "unhealthy"
    with pytest.raises(RuntimeError, match="closed"):
        connector.put("0", "1", "k", b"x")
    with pytest.raises(RuntimeError, match="closed"):
        connector.get("0", "1", "k")
