"""KvxferConnector: 10,000 objects, and nothing is left behind."""

import time

import pytest

pytest.importorskip("vllm_omni", reason="vllm-omni is not installed")
from omni_process import StageProcess, make, pattern  # noqa: E402

N = 10000
SIZES = [200, 3300, 20000, 100000]
MIB = 1 << 20


def run(connector, first, n):
    """Gets n objects of four sizes, in every way there is; returns how many were right."""
    right = 0
    for i in range(first, first + n):
        nbytes = SIZES[i % len(SIZES)]
        if i % 3 == 0:
            got = connector.get_with_deadline("0", "1", f"k{i}", deadline=time.monotonic() + 20)
        else:
            got = None
            until = time.monotonic() + 20
            while got is None and time.monotonic() < until:
                got = connector.get("0", "1", f"k{i}")
                if got is None:
                    time.sleep(0.0005)
        if got is not None:
            right += got[0].to_bytes() == pattern(nbytes, i)
            got[0].release()
    return right


def put_all(connector, first, n):
    for i in range(first, first + n):
        assert connector.put("0", "1", f"k{i}", pattern(SIZES[i % len(SIZES)], i))[0]
    return True


def test_ten_thousand_objects_leave_nothing(shared_node):
    sender = StageProcess(shared_node.socket, zmq_port=54000, stage_id=0,
                          kvxfer_put_wait_seconds=30)
    getter = StageProcess(shared_node.socket, role="receiver", sender_host="127.0.0.1",
                          sender_zmq_port=54000)
    right, begin, before = 0, 0, None
    for n in (1000, N - 1000):
        getter.send("run", run, begin, n)
        assert sender.run(put_all, begin, n)
        right += getter.result(500)
        begin += n
        before = before or [stage.usage() for stage in (sender, getter)]
    assert right == N
    for stage, (resident, fds, threads) in zip((sender, getter), before):
        until = time.monotonic() + 10
        while stage.health()["pool"]["used"] and time.monotonic() < until:
            time.sleep(0.05)
        pool = stage.health()["pool"]
        assert pool["used"] == pool["buffers"] == pool["pinned"] == 0, pool
        now = stage.usage()
        assert now[1] <= fds + 2 and now[2] <= threads + 1
        assert now[0] - resident < 8 * MIB, f"{(now[0] - resident) / MIB:.1f} MiB more"
        stage.stop()


def test_connectors_that_come_and_go_leave_nothing(shared_node):
    """200 receivers of one process, one after the other, each with a get."""
    sender = StageProcess(shared_node.socket, zmq_port=54001, stage_id=0)
    hold = make(shared_node.socket, role="receiver", sender_host="127.0.0.1",
                sender_zmq_port=54001)
    for i in range(200):
        connector = make(shared_node.socket, role="receiver", sender_host="127.0.0.1",
                         sender_zmq_port=54001)
        _, _, metadata = sender.put_bytes(f"k{i}", 10000, i)
        buffer, _ = connector.get("0", "1", f"k{i}", metadata)
        assert buffer.to_bytes() == pattern(10000, i)
        buffer.release()
        assert connector.get("0", "1", f"never{i}") is None
        connector.close()
    health = hold.health()
    assert health["pool"]["used"] == 0 and sum(health["fetches"].values()) == 0, health
    until = time.monotonic() + 5
    while sender.health()["pool"]["claims_waiting"] and time.monotonic() < until:
        time.sleep(0.01)
    assert sender.health()["pool"]["claims_waiting"] == 0
    hold.close()
    sender.stop()
