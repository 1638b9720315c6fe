"""Regions by name, messages that do not wait, labels, and the order in which a loss is told."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import kvxfer
from conftest import Node
from kvxfer import EventType, Ops, errors

WAIT_S = 20.0


def wait_for(client, type_, seen=None):
    """The next event of that type; all events read meanwhile are added to ``seen``."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        events = client.wait(1.0)
        if seen is not None:
            seen += events
        for event in events:
            if event.type is type_:
                return event
    raise AssertionError(f"no {type_.name}")


@pytest.fixture(params=["same node", "two nodes"])
def engines(request, shared_node):
    """Two clients, and what the second one's node is called by the first."""
    other = Node() if request.param == "two nodes" else shared_node
    here, there = shared_node.client("here"), other.client("there")
    yield here, there, there.address
    here.close()
    there.close()
    if other is not shared_node:
        other.stop()


def find(client, address, name):
    remote = client.find(address, name)
    event = wait_for(client, EventType.IMPORT_UP)
    assert event.remote is remote
    return remote, event.payload


def test_published_region_is_found(engines):
    here, there, address = engines
    with there.alloc(1 << 16, access="rw", publish="engine/tp0", note=b"four heads") as region:
        remote, note = find(here, address, "engine/tp0")
        assert note == b"four heads"
        assert remote.up
        assert remote.nbytes == 1 << 16
        local = here.alloc(1 << 16)
        local.numpy()[:] = 7
        here.write(local, remote, Ops([0], [0], 4096), label="cmpl-1").wait(WAIT_S)
        assert (region.numpy()[:4096] == 7).all()
        ended = here.query("transfers")["ended"]
        assert any(t["label"] == "cmpl-1" for t in ended), json.dumps(ended)
        remote.close()
        assert not remote.up


def test_nobody_has_published_it(engines):
    here, _, address = engines
    remote = here.find(address, "nobody")
    assert not remote.up
    event = wait_for(here, EventType.IMPORT_LOST)
    assert event.remote is remote
    assert isinstance(event.error, errors.NotFound)
    assert not remote.up
    remote.close()


def test_use_before_it_is_up(shared_node):
    with shared_node.client() as client:
        region = client.alloc(4096, access="rw", publish="early")
        remote = client.find(None, "early")
        for call in (lambda: remote.post(b"x"), lambda: remote.send(b"x"),
                     lambda: client.write(region, remote, Ops([0], [0], 1))):
            with pytest.raises(errors.TryAgain):
                call()
        wait_for(client, EventType.IMPORT_UP)
        client.write(region, remote, Ops([0], [64], 64)).wait(WAIT_S)


def test_node_that_is_not_there(shared_node):
    with shared_node.client() as client:
        remote = client.find("127.0.0.1:1", "x")
        event = wait_for(client, EventType.IMPORT_LOST)
        assert isinstance(event.error, errors.PeerUnreachable)
        remote.close()


def test_names_are_checked(shared_node):
    with shared_node.client() as client:
        for name in ("", "two words", "x" * 129):
            with pytest.raises(errors.Invalid):
                client.find(None, name)
            with pytest.raises(errors.Invalid):
                client.alloc(4096, access="r", publish=name)
        with pytest.raises(errors.AccessDenied):
            client.alloc(4096, publish="x")
        with pytest.raises(errors.TooBig):
            client.alloc(4096, access="r", publish="x", note=b"n" * 4097)
        with client.alloc(4096, access="r", publish="taken"):
            with pytest.raises(errors.Exists):
                client.alloc(4096, access="r", publish="taken")
        client.alloc(4096, access="r", publish="taken").close()


def test_posts_come_in_order_and_after_arrivals(engines):
    here, there, address = engines
    there.alloc(1 << 16, access="w", publish="posts")
    remote, _ = find(here, address, "posts")
    local = here.alloc(1 << 16)
    for number in range(50):
        here.write(local, remote, Ops([0], [0], 4096), tag=number).wait(WAIT_S)
        remote.post(b"%d" % number)
    seen = []
    end = time.monotonic() + WAIT_S
    while len(seen) < 100 and time.monotonic() < end:
        seen += there.wait(1.0)
    arrivals = [e.tag for e in seen if e.type is EventType.ARRIVAL]
    messages = [int(e.payload) for e in seen if e.type is EventType.MESSAGE]
    assert arrivals == messages == list(range(50))
    for number in range(50):
        place = {e.type: i for i, e in enumerate(seen)
                 if (e.tag if e.type is EventType.ARRIVAL else int(e.payload)) == number}
        assert place[EventType.ARRIVAL] < place[EventType.MESSAGE]
    for data in (b"", b"x" * 4097):
        with pytest.raises((errors.Invalid, errors.TooBig)):
            remote.post(data)


def test_find_may_be_closed_at_once(shared_node):
    with shared_node.client() as client:
        client.alloc(4096, access="r", publish="closed")
        client.find(None, "closed").close()
        client.query("status")
        assert not client.wait(0.1)


def test_found_imports_end_with_the_daemon(node):
    client = node.client()
    client.alloc(4096, access="r", publish="x", note=b"again")
    remote, _ = find(client, "", "x")
    assert client.address
    node.kill()
    wait_for(client, EventType.DAEMON_LOST)
    node.start()
    client.reconnect()
    event = wait_for(client, EventType.IMPORT_LOST)
    assert event.remote is remote
    assert isinstance(event.error, errors.DaemonLost)
    remote.close()
    assert find(client, None, "x")[1] == b"again"  # published again
    client.close()


VICTIM = textwrap.dedent("""
    import sys
    import kvxfer
    client = kvxfer.Client(sys.argv[1], name="victim")
    local = client.alloc(64 << 20)
    published = client.alloc(4096, access="r", publish="victim")
    remote = client.find(sys.argv[2], "survivor")
    while not remote.up:
        client.wait()
    ops = kvxfer.Ops(range(0, 64 << 20, 65536), range(0, 64 << 20, 65536), 65536)
    live = []
    while True:
        while len(live) < 3:
            live.append(client.write(local, remote, ops))
        live.pop(0).wait()
""")


def test_loss_comes_after_the_last_arrival(engines, shared_node):
    """The writer is killed: when its loss is read nothing of it lands any more."""
    here, there, address = engines
    region = there.alloc(64 << 20, access="rw", publish="survivor")
    code = [sys.executable, "-c", VICTIM, shared_node.socket, address]
    victim = subprocess.Popen(code)
    try:
        victims_address = here.address
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            remote = there.find(victims_address, "victim")
            event = wait_for_either(there)
            if event.type is EventType.IMPORT_UP:
                break
            remote.close()
            time.sleep(0.05)
        wait_for(there, EventType.ARRIVAL)
        os.kill(victim.pid, signal.SIGKILL)
        seen = []
        event = wait_for(there, EventType.IMPORT_LOST, seen)
        region.numpy()[:] = 0x5C
        assert isinstance(event.error, errors.ClientLost)
        late = seen[seen.index(event):] + list(there.wait(0.5))
        assert not [e for e in late if e.type is EventType.ARRIVAL]
        assert (region.numpy() == 0x5C).all()
    finally:
        victim.kill()
        victim.wait()


def wait_for_either(client):
    while True:
        for event in client.wait(WAIT_S):
            if event.type in (EventType.IMPORT_UP, EventType.IMPORT_LOST):
                return event
