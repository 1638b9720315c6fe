"""A kvxferd in a guest."""
import json
import shlex

from harness.faults import PEER_PORT
from harness.machine import GONE, Failed, Patience

START_TIMEOUT_S = 30
LOST_MS = 3000  # kvxferd's default


class Daemon:
    """Keeps its folder (socket, node id, log) over restarts."""

    def __init__(self, guest, name, sets, program):
        self.guest, self.name = guest, name
        self.folder = f"/run/kvx/{name}"
        self.socket = f"{self.folder}/kvxferd.sock"
        self.address = f"{guest.ip(0)}:{PEER_PORT}"
        self.sets = {"peer.listen": self.address, "peer.insecure_peers": "true", "daemon.node_id_file": f"{self.folder}/node-id"}
        if Patience.factor > 1.5:  # else a guest that gets no CPU time for a while is taken for lost
            self.sets["peer.lost_ms"] = str(round(LOST_MS * Patience.factor))
        self.sets.update(sets)
        self.program = program
        self.process = None
        self.told_to_end = False
        guest.run(f"mkdir -p {self.folder}")

    def start(self, wait=True):
        self.told_to_end = False
        words = self.program.split() + ["--socket", self.socket]
        for key, value in self.sets.items():
            words += ["--set", f"{key}={value}"]
        self.process = self.guest.start(f"exec {shlex.join(words)} >>{self.folder}/log 2>&1")
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self):
        ping = f"kvxferctl --socket {self.socket} --timeout 2 status >/dev/null 2>&1"
        done = self.guest.run(
            f"i=0; until {ping}; do i=$((i+1)); [ $i -lt {START_TIMEOUT_S * 5} ] || exit 1; sleep 0.2; done",
            timeout=START_TIMEOUT_S + 10, check=False)
        if done.rc != 0 or not self.alive:
            raise Failed(f"{self.guest.name}: kvxferd does not answer: {self.log()[-1500:]}")

    @property
    def alive(self):
        return self.process is not None and self.process.alive

    @property
    def crashed(self):
        """It has ended though nobody told it to. With its guest is not meant."""
        return self.process is not None and self.process.rc not in (None, GONE) and not self.told_to_end

    def kill(self, how="KILL"):
        self.told_to_end = self.told_to_end or how in ("KILL", "TERM", "INT", "ABRT", "SEGV")
        self.process.kill(how)
        if how == "KILL":
            self.process.wait(10)

    def stop(self, timeout=20):
        """SIGTERM; its exit code."""
        self.told_to_end = True
        self.process.kill("TERM")
        return self.process.wait(timeout).rc

    def ctl(self, command, timeout=20):
        """What "kvxferctl COMMAND --json" prints."""
        done = self.guest.run(f"kvxferctl --socket {self.socket} --json {command}", timeout)
        return json.loads(done.out)

    def ctl_text(self, command, timeout=20, check=True):
        return self.guest.run(f"kvxferctl --socket {self.socket} {command}", timeout, check)

    def log(self):
        return self.guest.read(f"{self.folder}/log")
