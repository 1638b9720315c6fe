"""KvxferConnector between two daemons, as between two nodes."""

import time

import pytest

pytest.importorskip("vllm_omni", reason="vllm-omni is not installed")
from omni_process import StageProcess, make, pattern  # noqa: E402
from omni_raw import RawGetter  # noqa: E402

SIZES = [1000, 5000, 1611700, 8 << 20]
PORT = 53000


@pytest.fixture
def other_node(node):
    node = type(node)()
    yield node
    node.stop()


def address(node):
    with node.client() as client:
        return client.address


@pytest.fixture
def sender(node):
    """A stage of the first node, which the test may kill."""
    stage = StageProcess(node.socket, zmq_port=PORT, stage_id=0)
    yield stage
    stage.end()


@pytest.fixture
def receiver(node, other_node):
    """A connector of the second node that asks the first."""
    connector = make(other_node.socket, role="receiver", sender_host=address(node),
                     sender_zmq_port=PORT)
    yield connector
    connector.close()


@pytest.mark.parametrize("with_metadata", [True, False])
def test_bytes_arrive_whole(sender, receiver, with_metadata):
    for nbytes in SIZES:
        _, _, metadata = sender.put_bytes(f"k{nbytes}", nbytes, 4)
        buffer, size = receiver.get_with_deadline(
            "0", "1", f"k{nbytes}", metadata if with_metadata else None,
            deadline=time.monotonic() + 20)
        assert size == nbytes and buffer.to_bytes() == pattern(nbytes, 4)
        buffer.release()
    peer, = [p for p in receiver.health()["peers"] if p["bytes"]]
    assert peer["path"] == "fabric" and peer["node"] != "this node"
    until = time.monotonic() + 5
    while sender.health()["pool"]["used"] and time.monotonic() < until:
        time.sleep(0.01)
    assert sender.health()["pool"]["used"] == 0


def test_both_ends_tell_the_path(sender, receiver):
    sender.put_bytes("k", 100000)
    receiver.get_with_deadline("0", "1", "k", deadline=time.monotonic() + 20)[0].release()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        paths = [p["path"] for p in sender.health()["peers"]]
        if paths == ["fabric"]:
            break
        time.sleep(0.01)
    assert paths == ["fabric"]


def test_required_transport_that_is_not_there_fails(node, other_node, sender):
    """Never a silent fallback: copy does not join two nodes."""
    connector = make(other_node.socket, role="receiver", sender_host=address(node),
                     sender_zmq_port=PORT, kvxfer_require="copy")
    _, _, metadata = sender.put_bytes("k", 100000)
    assert connector.get("0", "1", "k", metadata) is None
    assert connector.health()["errors"] == 1
    until = time.monotonic() + 5
    while sender.health()["pool"]["pinned"] and time.monotonic() < until:
        time.sleep(0.01)
    assert sender.health()["pool"]["waiting_for_getter"] == 1
    connector.close()


def test_killed_sender_is_told_across_nodes(sender, receiver):
    _, _, metadata = sender.put_bytes("k", 100000)
    receiver.get("0", "1", "warm")
    sender.kill()
    begin = time.monotonic()
    assert receiver.get("0", "1", "k", metadata) is None
    assert time.monotonic() - begin < 8


def test_lost_getter_gives_its_claim_back_across_nodes(node, other_node, sender, receiver):
    _, _, metadata = sender.put_bytes("k", 1 << 20, 6)
    lost = RawGetter(other_node, "omni/pool/lost")
    found = lost.find(metadata["kvxfer_pool"], address(node))
    lost.claim(found, "k@0_1", address=address(other_node))
    assert receiver.get("0", "1", "k") is None
    assert sender.health()["pool"]["pinned"] == 1
    lost.close()
    buffer, _ = receiver.get_with_deadline("0", "1", "k", deadline=time.monotonic() + 10)
    assert buffer.to_bytes() == pattern(1 << 20, 6)
    buffer.release()


@pytest.mark.parametrize("whose", ["sender's", "getter's"])
def test_put_data_survives_a_daemon(node, other_node, whose):
    """One of the two daemons is killed while gets are under way, and started again on its port."""
    port = address(node).rpartition(":")[2]
    sender = StageProcess(node.socket, zmq_port=PORT, stage_id=0, memory_pool_size=64 << 20)
    getter = StageProcess(other_node.socket, role="receiver", sender_host=address(node),
                          sender_zmq_port=PORT)
    sender.puts("k", 40, 1 << 20)
    getter.send("gets", "k", 40, 1 << 20, 40)
    time.sleep(0.03)
    victim = node if whose == "sender's" else other_node
    victim.kill()
    if victim is node:
        victim.sets = (*victim.sets, f"peer.listen=127.0.0.1:{port}")
    victim.start()
    assert getter.result(120) == 40
    getter.stop()
    sender.stop()


def test_stopped_node_is_lost_and_found_again(node, other_node, sender, receiver):
    """SIGSTOP of the sender's daemon: gets end in time; SIGCONT: the data is there still."""
    import signal

    sender.put_bytes("k", 100000, 5)
    receiver.get("0", "1", "warm")
    node.process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    assert receiver.get_with_deadline("0", "1", "k", deadline=begin + 6) is None
    assert time.monotonic() - begin < 9
    node.process.send_signal(signal.SIGCONT)
    buffer, _ = receiver.get_with_deadline("0", "1", "k", deadline=time.monotonic() + 20)
    assert buffer.to_bytes() == pattern(100000, 5)
    buffer.release()
