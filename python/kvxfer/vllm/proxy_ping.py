"""Registers an engine with the disaggregation proxy, and keeps it registered.

The messages go out from a process of their own, so that a busy interpreter lock in the engine
cannot make the proxy believe that the engine is dead. This file is that process' program, too: it
is run by its path, imports nothing of the engine, and ends when its standard input does.
"""

import json
import logging
import select
import subprocess
import sys
import threading
from typing import Any, Dict, Mapping

INTERVAL_S = 3.0
_STOP_S = 5.0
_AGAIN_S = 1.0
_RUN = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"

logger = logging.getLogger("vllm.kvxfer")


def registration(*, producer: bool, http_address: str, zmq_address: str, dp_size: int,
                 tp_size: int, read_mode: bool) -> Dict[str, Any]:
    """The message, as vllm-router and the reference proxy read it."""
    return {"type": "P" if producer else "D", "http_address": http_address,
            "zmq_address": zmq_address, "dp_size": dp_size, "tp_size": tp_size,
            "transfer_mode": "READ" if read_mode else "WRITE"}


class ProxyPing:
    """Sends ``message`` to the proxy at once, then every ``interval`` seconds, for ever; a proxy
    that is not there yet, or starts anew, gets it when it comes.

    Args:
        address: "host:port" of the proxy's discovery socket.
    """

    def __init__(self, address: str, message: Mapping[str, Any],
                 interval: float = INTERVAL_S) -> None:
        self._args = [sys.executable, "-c", _RUN, __file__, f"tcp://{address}", str(interval)]
        self._message = json.dumps(message).encode() + b"\n"
        self._closing = threading.Event()
        self._lock = threading.Lock()  # of the choice between a new process and the end
        self._process = self._start()
        threading.Thread(target=self._watch, name="kvxfer-ping", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process that sends."""
        return self._process.pid

    def close(self) -> None:
        """Ends it; blocks for at most some seconds. Does nothing the second time."""
        with self._lock:
            self._closing.set()
            process = self._process
        if process.stdin is not None:
            try:
                process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(self._args, stdin=subprocess.PIPE)
        assert process.stdin is not None
        try:
            process.stdin.write(self._message)
            process.stdin.flush()
        except BrokenPipeError:  # it has ended already: _watch() sees to that
            pass
        return process

    def _watch(self) -> None:
        """A process that is killed is started anew, as long as it is wanted."""
        while True:
            self._process.wait()
            self._closing.wait(_AGAIN_S)
            with self._lock:
                if self._closing.is_set():
                    return
                logger.warning("kvxfer: the process that registers with the proxy has ended: a new "
                               "one")
                self._process = self._start()


def _main(address: str, interval: float) -> None:
    import msgspec
    import zmq

    message = msgspec.msgpack.encode(json.loads(sys.stdin.readline()))
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 1)  # a proxy that was away gets one message, not a heap of them
    socket.setsockopt(zmq.IPV6, 1)
    socket.connect(address)
    while True:
        try:
            socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            pass
        if select.select([sys.stdin], [], [], interval)[0] and not sys.stdin.readline():
            break
    socket.close()
    context.term()


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine's, which then closes our input
    _main(sys.argv[1], float(sys.argv[2]))
