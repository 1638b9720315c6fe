"""One QEMU: its process, its network cards, its console, and the command channel (guest/kvx_guest.c has the protocol). A machine is
started once; another boot is another Machine."""
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

from harness import tsc

QEMU = "qemu-system-x86_64"
MEMORY_MB = 768
BOOT_TIMEOUT_S = 90
# Two guests on two idle cores boot in 3 to 4 s. Where it takes longer, the harness waits longer for everything else too.
BOOT_S = 6
MOST_PATIENCE = 8
TIMED_OUT = 124
GONE = -1
# What a healthy kernel never prints.
TROUBLE = re.compile(
    r"\b(BUG:|Oops|Kernel panic|WARNING: |refcount_t:|general protection|unable to handle|soft lockup|hung_task|"
    r"blocked for more than|rcu.*stall|list_(add|del) corruption|Call Trace|Out of memory|segfault at|trap .* error)")


def die_with_parent():
    """In the child: it gets SIGKILL when this process ends, whatever ends it."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


class Failed(Exception):
    """A promise was broken."""


class Patience:
    """How much slower than it should be this machine is now: time limits of the harness are so many times longer. The time limits
    that kvxfer promises are not."""

    factor = 1.0

    @classmethod
    def learn(cls, boot_s):
        cls.factor = min(MOST_PATIENCE, max(1.0, boot_s / BOOT_S))


class Result:
    """How a command ended."""

    def __init__(self, process, seconds):
        self.rc, self.out, self.err, self.seconds = process.rc, process.out, process.err, seconds
        self.command = process.command

    def json(self):
        return json.loads(self.out)

    def figures(self):
        """Its last line, a JSON object."""
        lines = [line for line in self.out.splitlines() if line.startswith("{")]
        if not lines:
            raise Failed(f"{self.command}: no figures in its output: {self.out[-300:]!r} {self.err[-300:]!r}")
        return json.loads(lines[-1])


class Process:
    """A command in a guest. Its output grows while it runs."""

    def __init__(self, machine, number, command):
        self.machine, self.number, self.command = machine, number, command
        self.changed = threading.Condition()
        self.data = {"O": b"", "E": b""}
        self.rc = None
        self.started = time.monotonic()
        self.ended = None
        self.taken = 0  # bytes of the output that expect() has seen

    @property
    def out(self):
        return self.data["O"].decode(errors="replace")

    @property
    def err(self):
        return self.data["E"].decode(errors="replace")

    @property
    def alive(self):
        return self.rc is None

    def on_data(self, kind, data):
        with self.changed:
            self.data[kind] += data
            self.changed.notify_all()

    def on_end(self, code):
        with self.changed:
            if self.rc is None:
                self.rc, self.ended = code, time.monotonic()
            self.changed.notify_all()

    def expect(self, pattern, timeout=30):
        """The match in the next line of the output that has one. Lines before it are passed over."""
        end = time.monotonic() + timeout * Patience.factor
        with self.changed:
            while True:
                while (stop := self.data["O"].find(b"\n", self.taken)) >= 0:
                    line = self.data["O"][self.taken:stop].decode(errors="replace")
                    self.taken = stop + 1
                    if match := re.search(pattern, line):
                        return match
                left = end - time.monotonic()
                if self.rc is not None or left <= 0:
                    how = f"it ended with {self.rc}" if self.rc is not None else f"not in {timeout} s"
                    raise Failed(f"{self.command}: no line with {pattern!r}: {how}; {self.tail()}")
                self.changed.wait(left)

    def tail(self):
        return f"output {self.out[-600:]!r} errors {self.err[-600:]!r}"

    def send(self, text):
        self.machine.write(f"I {self.number} {len(text.encode()) + 1}\n".encode() + text.encode() + b"\n")

    def close_input(self):
        self.machine.write(f"I {self.number} 0\n".encode())

    def kill(self, how="KILL"):
        self.machine.write(f"K {self.number} {getattr(signal, 'SIG' + how)}\n".encode())

    def wait(self, timeout=30):
        with self.changed:
            if not self.changed.wait_for(lambda: self.rc is not None, timeout * Patience.factor):
                raise Failed(f"{self.command}: still running after {timeout} s; {self.tail()}")
        return Result(self, self.ended - self.started)


class Machine:
    tsc_khz = None  # measured once

    def __init__(self, folder, kernel, initrd, words, nics):
        """words: for the kernel's command line; nics: [(netdev option without its id, MAC)]."""
        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.console_path = os.path.join(folder, "console.log")
        self.port_path = os.path.join(folder, "port")
        self.qmp_path = os.path.join(folder, "qmp")
        self.processes = {}
        self.next_number = 1
        self.lock = threading.Lock()
        self.ready = threading.Event()
        self.console_seen = 0
        self.started = time.monotonic()
        for path in (self.port_path, self.qmp_path):
            if os.path.exists(path):
                os.unlink(path)
        self.qemu = subprocess.Popen(
            self.command(kernel, initrd, words, nics), stdin=subprocess.DEVNULL,
            stdout=open(os.path.join(folder, "qemu.log"), "wb"), stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        self.port = self.connect()
        self.reader = threading.Thread(target=self.read_all, daemon=True)
        self.reader.start()

    def command(self, kernel, initrd, words, nics):
        line = f"console=ttyS0 net.ifnames=0 mitigations=off tsc=reliable random.trust_cpu=on no_timer_check panic=-1 {words}"
        if Machine.tsc_khz is None:
            Machine.tsc_khz = tsc.khz() or 0
        if Machine.tsc_khz:
            line += f" tsc_early_khz={Machine.tsc_khz}"
        command = [
            QEMU, "-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", "1", "-m", str(MEMORY_MB), "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-kernel", kernel.image, "-initrd", initrd, "-append", line,
            "-chardev", f"file,id=console,path={self.console_path}", "-serial", "chardev:console",
            "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=port,path={self.port_path},server=on,wait=off",
            "-device", "virtserialport,chardev=port,name=kvx",
        ]
        for number, (netdev, mac) in enumerate(nics):
            command += ["-netdev", f"{netdev},id=net{number}",
                        "-device", f"virtio-net-pci,netdev=net{number},mac={mac},romfile="]
        return command

    def connect(self):
        end = time.monotonic() + 20
        while True:
            if self.qemu.poll() is not None:
                raise Failed(f"qemu ended with {self.qemu.returncode}: {self.file('qemu.log')[-500:]}")
            port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                port.connect(self.port_path)
                return port
            except OSError as error:
                port.close()
                if time.monotonic() > end:
                    raise Failed(f"no command port from qemu: {error}") from error
                time.sleep(0.02)

    def file(self, name):
        try:
            with open(os.path.join(self.folder, name), "rb") as data:
                return data.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_ready(self):
        end = time.monotonic() + BOOT_TIMEOUT_S
        while not self.ready.wait(0.1):
            if self.qemu.poll() is not None or time.monotonic() > end:
                raise Failed(f"the guest does not start: {self.file('qemu.log')[-300:]} {self.file('console.log')[-1500:]}")
        Patience.learn(time.monotonic() - self.started)

    @property
    def alive(self):
        return self.qemu.poll() is None

    # -- the channel

    def write(self, data):
        try:
            with self.lock:
                self.port.sendall(data)
        except OSError:
            pass  # it is gone: read_all() ends all commands

    def start(self, command, timeout_s=0):
        with self.lock:
            number = self.next_number
            self.next_number += 1
            process = self.processes[number] = Process(self, number, command)
        text = command.encode()
        self.write(f"R {number} {int(timeout_s * 1000)} {len(text)}\n".encode() + text)
        if not self.reader.is_alive():  # else it ends the command when the machine goes
            process.on_end(GONE)
        return process

    def read_all(self):
        stream = self.port.makefile("rb")
        try:
            while line := stream.readline():
                self.on_line(line.split(), stream)
        except (OSError, ValueError):
            pass
        for process in list(self.processes.values()):
            process.on_end(GONE)

    def on_line(self, words, stream):
        if words[0] == b"H":
            self.ready.set()
            return
        process = self.processes[int(words[1])]
        if words[0] == b"X":
            self.processes.pop(int(words[1]))
            process.on_end(int(words[2]))
        else:
            process.on_data(words[0].decode(), stream.read(int(words[2])))

    # -- the machine

    def trouble(self):
        """Lines of the console, since the last call, that a healthy kernel does not print."""
        text = self.file("console.log")
        new, self.console_seen = text[self.console_seen:], len(text)
        return [line.strip() for line in new.splitlines() if TROUBLE.search(line)]

    def signal(self, how):
        if self.alive:
            self.qemu.send_signal(how)

    def monitor(self, word):
        """Has QEMU do it: "stop", "cont"."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as port:
            port.settimeout(30)
            port.connect(self.qmp_path)
            stream = port.makefile("rw")
            for line in ("", "qmp_capabilities", word):
                if line:
                    stream.write(json.dumps({"execute": line}) + "\n")
                    stream.flush()
                while "event" in (answer := json.loads(stream.readline())):
                    pass
                if "error" in answer:
                    raise Failed(f"qemu: {line}: {answer}")

    def power_off(self):
        if self.alive:
            self.qemu.kill()
        self.qemu.wait()
        self.port.close()
