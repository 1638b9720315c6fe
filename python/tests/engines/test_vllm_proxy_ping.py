"""Registration with the proxy, against a real ZMQ socket such as the reference proxy's."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kvxfer.vllm.proxy_ping import ProxyPing, registration

zmq = pytest.importorskip("zmq", reason="pyzmq is not installed (it comes with vLLM)")
msgspec = pytest.importorskip("msgspec", reason="msgspec is not installed (it comes with vLLM)")

WAIT_MS = 20000
MESSAGE = registration(producer=True, http_address="127.0.0.1:8100",
                       zmq_address="host:127.0.0.1,handshake:6301,notify:6105", dp_size=1,
                       tp_size=4, read_mode=False)


@pytest.fixture
def proxy():
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    yield router, f"127.0.0.1:{port}"
    router.close(linger=0)
    context.term()


@pytest.fixture
def ping(proxy):
    one = ProxyPing(proxy[1], MESSAGE, interval=0.2)
    yield one
    one.close()


def receive(router):
    assert router.poll(WAIT_MS), "the proxy got nothing"
    return msgspec.msgpack.decode(router.recv_multipart()[1])


def test_the_message_has_what_proxies_require():
    assert MESSAGE == {
        "type": "P", "http_address": "127.0.0.1:8100",
        "zmq_address": "host:127.0.0.1,handshake:6301,notify:6105", "dp_size": 1, "tp_size": 4,
        "transfer_mode": "WRITE"}


def test_a_decode_engine_in_read_mode_says_so():
    message = registration(producer=False, http_address="a:1", zmq_address="z", dp_size=1,
                           tp_size=1, read_mode=True)
    assert (message["type"], message["transfer_mode"]) == ("D", "READ")


def test_the_proxy_gets_the_message_again_and_again(proxy, ping):
    assert [receive(proxy[0]) for _ in range(3)] == [MESSAGE] * 3


def test_a_proxy_that_starts_later_gets_it(ping, proxy):
    router, address = proxy
    receive(router)
    router.unbind(f"tcp://{address}")
    while router.poll(500):  # what was under way
        router.recv_multipart()
    router.bind(f"tcp://{address}")
    assert receive(router) == MESSAGE


def test_close_ends_the_process(ping):
    ping.close()
    assert not _runs(ping.pid)


def test_a_process_that_is_killed_is_started_anew(proxy, ping):
    first = ping.pid
    receive(proxy[0])
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + WAIT_MS / 1000
    while ping.pid == first:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert receive(proxy[0]) == MESSAGE and _runs(ping.pid)


def test_it_ends_with_the_engine(proxy):
    """Also when the engine is killed."""
    code = ("import sys, time; from kvxfer.vllm.proxy_ping import ProxyPing\n"
            f"ping = ProxyPing({proxy[1]!r}, {MESSAGE!r}, interval=0.2)\n"
            "print(ping.pid, flush=True); time.sleep(600)")
    engine = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    pid = int(engine.stdout.readline())
    receive(proxy[0])
    engine.kill()
    engine.wait()
    engine.stdout.close()
    end = time.monotonic() + WAIT_MS / 1000
    while _runs(pid):
        assert time.monotonic() < end, "the process outlived its engine"
        time.sleep(0.05)


def test_it_goes_on_while_the_engines_interpreter_is_busy(proxy, ping):
    router = proxy[0]
    receive(router)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:  # holds the interpreter lock
        pass
    assert sum(1 for _ in iter(lambda: router.poll(0) and router.recv_multipart(), 0)) >= 4


def _runs(pid):
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
