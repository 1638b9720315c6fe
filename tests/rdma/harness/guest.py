"""A guest as scenarios see it (../README.md): commands, daemons, faults, power."""
import os
import re
import shlex
import signal

from harness import faults
from harness.daemon import Daemon
from harness.machine import TIMED_OUT, Failed, Patience

NICS = 3  # eth0 control, eth1 and eth2 rails
GID_TIMEOUT_S = 15
RESET_TIMEOUT_S = 40
GONE_TIMEOUT_S = 5  # a killed process frees its queue pairs while it ends, one after the other
# Lines of a failed scenario's programs: of each kind that they found wrong, and the last ones.
MOST_BAD = 12
TAIL = 15


class Guest:
    def __init__(self, name, number, make_machine):
        """make_machine(guest): a Machine that has been started."""
        self.name, self.number, self.make_machine = name, number, make_machine
        self.machine = None
        self.daemons = []
        self.processes = []

    # -- commands

    def start(self, command):
        text = command if isinstance(command, str) else shlex.join(map(str, command))
        process = self.machine.start(text)
        self.processes.append(process)
        return process

    def run(self, command, timeout=30, check=True):
        text = command if isinstance(command, str) else shlex.join(map(str, command))
        process = self.machine.start(text, timeout * Patience.factor)
        done = process.wait(timeout + 10)
        if done.rc == TIMED_OUT:
            raise Failed(f"{self.name}: {text}: not done in {timeout} s; {process.tail()}")
        if check and done.rc != 0:
            raise Failed(f"{self.name}: {text}: exit code {done.rc}; {process.tail()}")
        return done

    def write(self, path, text):
        self.run(f"cat >{shlex.quote(path)} <<'KVX_END'\n{text}\nKVX_END")

    def read(self, path):
        return self.run(f"cat {shlex.quote(path)}").out

    # -- the node

    def daemon(self, name="kvxferd", sets=None, wait=True, program="kvxferd", **conf):
        keys = dict(sets or {})
        keys.update({key.replace("__", "."): value for key, value in conf.items()})
        daemon = Daemon(self, name, keys, program)
        self.daemons.append(daemon)
        return daemon.start(wait)

    def ip(self, nic=0):
        return f"10.77.{nic}.{self.number}"

    def device(self, rail=0):
        return f"rxe{rail}"

    def rail_line(self, rail):
        """Makes a soft device and waits until it has its IPv4 GID, as a shell line."""
        nic = rail + 1
        want = "0000:0000:0000:0000:0000:ffff:0a4d:%02x%02x" % (nic, self.number)
        path = f"/sys/class/infiniband/rxe{rail}/ports/1/gids/1"
        return (f"rdma link add rxe{rail} type rxe netdev eth{nic} || exit 1; i=0; "
                f"until grep -q {want} {path}; do i=$((i+1)); [ $i -lt {GID_TIMEOUT_S * 10} ] || exit 1; sleep 0.1; done")

    def add_rail(self, rail):
        self.run(self.rail_line(rail), GID_TIMEOUT_S + 5)

    def remove_rail(self, rail):
        self.run(f"rdma link delete rxe{rail}")

    # -- faults

    def nics(self, nic):
        return range(NICS) if nic is None else [nic]

    def netem(self, what, nic=1):
        self.run(faults.netem(nic, what))

    def block(self, what, way="both", nic=None):
        self.run(faults.block(self.nics(nic), what, way))

    def unblock(self):
        self.run(faults.unblock(range(NICS)))

    def link(self, nic, up):
        self.run(faults.link(nic, up))

    def heal_line(self):
        lines = [faults.unblock(range(NICS))]
        for nic in range(NICS):
            lines += [faults.netem(nic, None), faults.link(nic, True), f"ip addr replace {self.ip(nic)}/24 dev eth{nic}"]
        return "; ".join(lines)

    def heal(self):
        self.run(self.heal_line())

    # -- power

    @property
    def alive(self):
        return self.machine is not None and self.machine.alive

    def boot(self, wait=True):
        """A new machine; what the old one had is gone."""
        self.processes, self.daemons = [], []
        self.machine = self.make_machine(self)
        if wait:
            self.wait_ready()

    def wait_ready(self):
        self.machine.wait_ready()
        self.add_rail(0)

    def power_off(self):
        self.machine.power_off()

    def freeze(self):
        """The whole machine stops; its clock finds, afterwards, that it went on."""
        self.machine.signal(signal.SIGSTOP)

    def thaw(self):
        self.machine.signal(signal.SIGCONT)

    def pause(self):
        """Likewise, but for the machine no time goes by: its clock stands still, too."""
        self.machine.monitor("stop")

    def resume(self):
        self.machine.monitor("cont")

    def reset(self):
        """As after a boot: no process of ours, no file, no fault, a new rxe0. Gives a Process, to be waited for; what cannot be undone
        is a failure of the scenario before."""
        self.thaw()
        self.resume()
        self.processes, self.daemons = [], []
        return self.machine.start(
            "kill -9 -1; " + self.heal_line() + "; sleep 0.1; i=0; "
            "while left=$(rdma -d resource show qp 2>/dev/null | grep -v -e 'type GSI' -e 'type SMI'); do "
            f"[ $i -lt {GONE_TIMEOUT_S * 10} ] || {{ echo \"queue pairs without a process: $left\"; exit 1; }}; i=$((i+1)); sleep 0.1; done; "
            "for d in /sys/class/infiniband/*; do [ -e $d ] && rdma link delete ${d##*/}; done; "
            "rm -rf /run/kvx /tmp/* /dev/shm/* /var/lib/kvxfer/*; " + self.rail_line(0), RESET_TIMEOUT_S * Patience.factor)

    def report(self, folder):
        """Lines that explain a failure: ends of the logs of daemons and of background commands, and what these found wrong. All of it
        is written to the folder."""
        lines = []
        if not self.alive:
            return [f"{self.name}: is off"]
        for daemon in self.daemons:
            how = "runs" if daemon.alive else f"ended with {daemon.process.rc if daemon.process else 'nothing'}"
            log = self.run(f"cat {daemon.folder}/log", check=False).out
            keep(folder, f"{self.name}-{daemon.name}.log", log)
            tail = log.splitlines()[-40:]
            lines += [f"{self.name}: {daemon.name} {how}; its log:"] + ["  " + line for line in tail]
        for process in self.processes:
            if any(process is daemon.process for daemon in self.daemons):
                continue
            how = "runs" if process.alive else f"ended with {process.rc}"
            said = (process.out + process.err).splitlines()
            keep(folder, f"{self.name}-{process.number}.out", f"{process.command} {how}\n{process.out}{process.err}")
            lines.append(f"{self.name}: {process.command} {how}:")
            lines += ["  " + line for line in found_wrong(said[:-TAIL]) + said[-TAIL:]]
        return lines


def found_wrong(lines):
    """What a driver says is wrong (bad=KIND ...): the first few of each kind."""
    shown, counts = [], {}
    for line in lines:
        if match := re.search(r"\bbad=(\w+)", line):
            counts[match[1]] = counts.get(match[1], 0) + 1
            if counts[match[1]] <= MOST_BAD:
                shown.append(line)
    return shown + [f"... and {count - MOST_BAD} more of {kind}" for kind, count in counts.items() if count > MOST_BAD]


def keep(folder, name, text):
    with open(os.path.join(folder, name), "a", encoding="utf-8") as out:
        out.write(text)
