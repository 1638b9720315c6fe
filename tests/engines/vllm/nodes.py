"""Nodes: a kvxferd each, on loopback addresses of their own."""

import json
import os
import pathlib
import subprocess
from typing import Any, Dict, List

from processes import Process, free_port, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[3]


def find_program(variable: str, relative: str) -> str:
    """A program of this repository: as the environment variable says, else from a build folder."""
    named = os.environ.get(variable)
    if named:
        return named
    for found in sorted(ROOT.glob(f"build*/{relative}")):
        return str(found)
    raise AssertionError(f"no {relative} in a build folder: set {variable}")


class Node:
    """A daemon with its socket; engines connect with KVXFER_SOCKET."""

    def __init__(self, directory: pathlib.Path, number: int, *settings: str):
        self.address = f"127.0.0.{number}:{free_port(f'127.0.0.{number}')}"
        self.dir = directory / f"node{number}"
        self.dir.mkdir()
        self.socket = str(self.dir / "kvxferd.sock")
        self.ctl = find_program("KVXFERCTL", "tools/kvxferctl/kvxferctl")
        command = [find_program("KVXFERD", "daemon/kvxferd"), "--socket", self.socket,
                   "--listen", self.address,
                   "--set", f"daemon.node_id_file={self.dir}/node-id"]
        for one in settings:
            command += ["--set", one]
        self.daemon = Process(f"kvxferd {number}", command, self.dir / "log")
        self.wait_up()

    def wait_up(self) -> None:
        self.daemon.wait_ready(30, lambda: self.query("status") is not None)

    def query(self, what: str, *more: str) -> Any:
        """What `kvxferctl --json` says; None when the daemon does not answer."""
        done = subprocess.run([self.ctl, "--socket", self.socket, "--json", what, *more],
                              capture_output=True, text=True, timeout=20, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def clients(self) -> List[Dict[str, Any]]:
        answer = self.query("clients")
        return list(answer["clients"]) if answer else []

    def regions(self) -> List[Dict[str, Any]]:
        answer = self.query("regions")
        return list(answer["regions"]) if answer else []

    def transfers(self) -> Dict[str, List[Dict[str, Any]]]:
        """"live", "ended" (newest first), "inbound": what others do with memory of this node."""
        return dict(self.query("transfers", "-n", "1000") or {})

    def live_transfers(self) -> int:
        return len(self.transfers().get("live", []))

    def kill(self) -> None:
        self.daemon.kill()

    def restart(self) -> None:
        """Starts the daemon again at the same address and socket, after kill() or stop()."""
        self.daemon.start()
        self.wait_up()

    def stop(self) -> None:
        """Orderly; AssertionError when the daemon does not end with 0."""
        running = self.daemon.alive()
        self.daemon.stop()
        process = self.daemon.process
        assert process is not None
        if running:
            assert process.returncode == 0, f"kvxferd: {process.returncode}:\n{self.log()}"

    def log(self) -> str:
        return self.daemon.log()[-3000:]

    def wait_idle(self, seconds: float = 20.0) -> float:
        """Blocks until no transfer runs; the seconds that took."""
        return wait_until("no running transfer", seconds, lambda: self.live_transfers() == 0)
