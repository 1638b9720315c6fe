"""Processes that the tests start: one at a time, with a log, gone when the test is over."""

import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from typing import Callable, Dict, List, Mapping, Optional, Sequence

LOG_TAIL = 3000


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, seconds: float, true: Callable[[], bool], every: float = 0.05) -> float:
    """Asks until true() says so; the seconds it took. AssertionError after `seconds`."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(every)
    return time.monotonic() - begin


def http_ok(url: str, timeout: float = 2.0) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return int(answer.status) == 200
    except (OSError, urllib.error.URLError):
        return False


def children(pid: int) -> Dict[int, str]:
    """pid -> command line of a process and everything below it."""
    parents: Dict[int, List[int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(stat[1]), []).append(int(entry.name))
    found: Dict[int, str] = {}
    todo = [pid]
    while todo:
        one = todo.pop()
        try:
            line = pathlib.Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        found[one] = line.decode(errors="replace").strip()
        todo += parents.get(one, [])
    return found


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Process:
    """A command in a session of its own, its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: pathlib.Path,
                 env: Optional[Mapping[str, str]] = None):
        self.name = name
        self.command = list(command)
        self.log_path = log
        self.env = dict(os.environ, **(env or {}))
        self.process: Optional["subprocess.Popen[bytes]"] = None
        self.start()

    def start(self) -> None:
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.env,
                                            stdin=subprocess.DEVNULL, start_new_session=True,
                                            preexec_fn=_die_with_parent)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, seconds: float, ready: Callable[[], bool]) -> float:
        """Blocks until ready(); AssertionError with the log's end when the process ends first."""
        def or_dead() -> bool:
            assert self.alive(), f"{self.name} ended:\n{self.log()[-LOG_TAIL:]}"
            return ready()
        try:
            return wait_until(f"{self.name} ready", seconds, or_dead, 0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-LOG_TAIL:]}") from None

    def kill(self, only: str = "") -> None:
        """SIGKILL, as when the kernel takes the process away: it and everything below it, or what
        has `only` in its command line. Python's resource tracker is left to clear /dev/shm; it ends
        by itself."""
        victims = children(self.pid)
        for pid, line in victims.items():
            if "resource_tracker" not in line and only in line:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        if not only and self.process is not None:
            self.process.wait(30)

    def stop(self, seconds: float = 30.0) -> None:
        """SIGTERM, and SIGKILL after `seconds` for whatever is left."""
        if self.process is None:
            return
        below = children(self.pid) if self.alive() else {}
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
        end = time.monotonic() + 5
        for pid in below:
            while pathlib.Path(f"/proc/{pid}").exists() and time.monotonic() < end:
                time.sleep(0.05)
            if pathlib.Path(f"/proc/{pid}").exists() and pid != self.pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def rss_bytes(self) -> Dict[str, int]:
        """Resident memory of each process of this tree, by command line (shortened) and pid."""
        page = os.sysconf("SC_PAGE_SIZE")
        sizes = {}
        for pid, line in children(self.pid).items():
            try:
                pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
            sizes[f"{line[:24]}:{pid}"] = pages * page
        return sizes

    def fds(self) -> Dict[str, int]:
        """Open descriptors of each process of this tree."""
        counts = {}
        for pid, line in children(self.pid).items():
            try:
                counts[f"{line[:24]}:{pid}"] = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
        return counts
