"""Every status has its exception; those that a daemon can be brought to are brought about."""

import errno
import os
import time

import numpy as np
import pytest

import kvxfer
from conftest import Node, Pair
from kvxfer import Blocks, EventType, Ops, errors
from kvxfer._native import lib


def test_statuses_are_those_of_the_header():
    names = {errors.string(lib.kvxfer_status_name(i)): i for i in range(64)}
    names.pop("UNKNOWN")
    assert names == {status.name: int(status) for status in errors.Status}
    assert lib.KVXFER_BAD_FD == errors.Status.BAD_FD  # the compiler's value


@pytest.mark.parametrize("status", [s for s in errors.Status if s])
def test_one_class_per_status_both_ways(status):
    told = errors.from_status(int(status), "why", 2, 7)
    assert told.status is status and told.scope is errors.Scope.PEER and told.vendor_code == 7
    assert told.errno == -lib.kvxfer_status_errno(int(status)) and told.text == "why"
    called = errors.from_errno(-told.errno, "why")
    assert type(called) is type(told) is not errors.KvxferError
    assert called.status is status and called.scope is None
    assert status.name in str(told)
    assert len({errors.from_errno(-errors.from_status(int(s), "", 0, 0).errno, "").__class__
                for s in errors.Status if s}) == len(errors.Status) - 1


def test_unknown_status_is_a_failure():
    error = errors.from_status(999, "", 99, 0)
    assert type(error) is errors.KvxferError and error.status is None and error.scope is None
    assert error.errno == errno.ENOTRECOVERABLE and not error.retryable


def test_retryable_is_the_librarys():
    assert errors.PeerLost("x").retryable and not errors.OutOfRange("x").retryable


def test_open_errors(tmp_path):
    with pytest.raises(errors.NotFound):
        kvxfer.Client(str(tmp_path / "none"))
    with pytest.raises(errors.Invalid):
        kvxfer.Client("x" * 200)
    for timeout in (0, -1, 1e9):
        with pytest.raises(errors.Invalid):
            kvxfer.Client(timeout=timeout)
    import socket
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(errors.NoDaemon):
        kvxfer.Client(str(tmp_path / "dead"))


def test_cancelled(pair):
    transfer = pair.write(streaming=True)
    assert transfer.cancel() is True
    with pytest.raises(errors.Cancelled) as info:
        transfer.wait(30)
    assert info.value is transfer.event.error


def test_deadline(pair):
    transfer = pair.write(streaming=True, deadline=0.1)
    with pytest.raises(errors.Deadline):
        transfer.wait(30)
    for deadline in (0, -1, 1e10):
        with pytest.raises(errors.Invalid):
            pair.write(streaming=True, deadline=deadline)


def test_invalid(pair):
    for what, options in ((None, {}), (Blocks([0], [0], planes=range(0, 0)), {}),
                          (Blocks([0], [0]), {"tag": -1}), (Ops([0], [0], 0), {}),
                          (Ops([0], [0], -1), {})):
        with pytest.raises(errors.Invalid):
            pair.write(what, **options)
    with pytest.raises(errors.Invalid):
        pair.decode.write(pair.regions[0], pair.to_decode, Blocks([0], [0]))


def test_too_big(pair):
    with pytest.raises(errors.TooBig):
        pair.write(Blocks([0], [0]), payload=b"x" * 4097)
    with pytest.raises(errors.TooBig):
        pair.to_decode.send(b"x" * 4097)
    n = pair.prefill.limits.max_blocks + 1
    with pytest.raises(errors.TooBig):
        pair.write(Blocks(np.zeros(n, np.int32), np.zeros(n, np.int32)))


def test_out_of_range(pair):
    with pytest.raises(errors.OutOfRange):
        pair.write(Blocks([32], [0])).wait(30)
    with pytest.raises(errors.OutOfRange):
        pair.write(Ops([0], [pair.regions[1].nbytes - 1], 2)).wait(30)


def test_access_denied(pair):
    private = pair.prefill.alloc(4096)
    with pytest.raises(errors.AccessDenied):
        private.export()
    readable = pair.prefill.alloc(4096, access="r")
    remote = pair.decode.open_import(readable.export())
    with pytest.raises(errors.AccessDenied):
        pair.decode.write(pair.regions[1], remote, Ops([0], [0], 8)).wait(30)
    with pytest.raises(errors.Invalid):
        pair.prefill.alloc(4096, access="x")


def test_layout_mismatch(pair):
    other = pair.prefill.alloc(4 * 32 * 4096, layout=kvxfer.Layout([kvxfer.Plane("", 0, 512, 512)]))
    with pytest.raises(errors.LayoutMismatch):
        pair.prefill.open_import(pair.regions[1].export(), compare=other)
    with pytest.raises(errors.LayoutMismatch):
        pair.prefill.write(other, pair.to_decode, Blocks([0], [0])).wait(30)


def test_unsupported_and_no_path(pair):
    with pytest.raises(errors.Unsupported):
        pair.prefill.query("nonsense")
    with pytest.raises(errors.NoPath):
        pair.write(Blocks([0], [0]), require="fabric").wait(30)


def test_not_a_descriptor_and_not_found(pair):
    with pytest.raises(errors.Invalid):
        pair.prefill.open_import(b"junk")
    region = pair.decode.alloc(4096, access="rw")
    descriptor = region.export()
    region.close()
    with pytest.raises(errors.NotFound):
        pair.prefill.open_import(descriptor)


def test_region_lost_and_import_lost(pair):
    transfer = pair.write(streaming=True)
    pair.regions[1].close()
    with pytest.raises(errors.RegionLost):
        transfer.wait(30)
    events = pair.prefill.wait(30)
    assert [(e.type, e.remote) for e in events] == [(EventType.IMPORT_LOST, pair.to_decode)]
    pair.to_decode.close()


def test_client_lost(pair):
    transfer = pair.write(streaming=True)
    pair.decode.close()
    with pytest.raises((errors.ClientLost, errors.RegionLost)):
        transfer.wait(30)
    with pytest.raises(errors.ClientLost):
        pair.to_decode.send(b"anyone?")


def test_bad_fd_and_no_memory(pair, tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(4096)
        memory = kvxfer.Memory.from_fd(file.fileno(), 4096)
        with pytest.raises(errors.BadFd):
            pair.prefill.register(memory)
    with pytest.raises(errors.NoMemory):
        kvxfer.Memory(1 << 60)  # refused before a page is made
    with pytest.raises(errors.Invalid):
        kvxfer.Memory(0)


def test_quota():
    node = Node("limits.regions_per_client=1")
    try:
        with node.client() as client:
            client.alloc(4096)
            with pytest.raises(errors.Quota):
                client.alloc(4096)
    finally:
        node.stop()


def test_draining(node):
    pair = Pair(node)
    pair.prefill.query("drain")
    assert pair.prefill.wait(30)[0].type is EventType.DRAINING
    with pytest.raises(errors.Draining):
        pair.write(Blocks([0], [0])).wait(30)
    pair.prefill.query("undrain")
    pair.close()


def test_daemon_killed_then_reconnect(node):
    pair = Pair(node)
    transfer = pair.write(streaming=True)
    descriptor = pair.regions[1].export()
    node.kill()
    with pytest.raises(errors.DaemonLost):
        transfer.wait(30)
    assert [e.type for e in pair.prefill.wait(30)] == [EventType.DAEMON_LOST]
    for call in (pair.prefill.poll, pair.prefill.wait, lambda: pair.write(Blocks([0], [0])),
                 lambda: pair.prefill.alloc(4096)):
        with pytest.raises(errors.DaemonLost):
            call()
    pair.decode.wait(30)
    node.start()
    pair.prefill.reconnect()
    pair.decode.reconnect()
    with pytest.raises(errors.KvxferError) as info:
        pair.prefill.reconnect()
    assert info.value.errno == errno.EALREADY
    with pytest.raises(errors.Stale):
        pair.prefill.open_import(descriptor)
    lost = pair.prefill.wait(30)
    assert [e.remote for e in lost] == [pair.to_decode]
    pair.src[...] = 7
    remote = pair.prefill.open_import(pair.regions[1].export())
    pair.prefill.write(pair.regions[0], remote, Blocks([1], [1])).wait(30)
    assert (pair.dst[:, 1] == 7).all() and not pair.dst[:, 0].any()
    pair.close()


def test_peer_lost():
    nodes = Node("peer.lost_ms=2000"), Node("peer.lost_ms=2000")
    try:
        pair = Pair(nodes[0], decode_node=nodes[1])
        transfer = pair.write(streaming=True, deadline=100)
        transfer.append(Blocks([1], [1]))
        time.sleep(0.2)
        nodes[1].kill()
        with pytest.raises((errors.PeerLost, errors.PeerUnreachable)):
            transfer.wait(60)
        pair.close()
    finally:
        for node in nodes:
            node.stop()


def test_forked_child_is_refused(pair):
    transfer = pair.write(streaming=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            calls = [lambda: pair.write(Blocks([0], [0])), pair.prefill.poll, transfer.seal,
                     lambda: pair.prefill.alloc(4096), pair.regions[1].close]
            for call in calls:
                try:
                    call()
                except errors.Forked:
                    continue
                os._exit(2)
            pair.prefill.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    transfer.append(Blocks([1], [1]))
    transfer.seal()
    assert transfer.wait(30).ok
