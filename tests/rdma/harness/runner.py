"""Runs scenarios, those with as many guests in one boot, and prints TAP."""
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

from harness import kernel
from harness.image import Image
from harness.machine import QEMU, Failed, Patience
from harness.net import Net
from harness.scenario import Skipped


class OverTime(Exception):
    """A scenario ran longer than it may."""


def on_alarm(number, frame):
    raise OverTime()


def on_term(number, frame):
    sys.exit(128 + number)


class Runner:
    def __init__(self, programs, cache, seed, keep):
        self.programs, self.cache, self.seed, self.keep = programs, cache, seed, keep
        self.folder = None
        self.kernel = self.initrd = None
        self.n_failed = 0

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="kvxrdma-")  # short: names of Unix sockets are at most 107 bytes
        signal.signal(signal.SIGALRM, on_alarm)
        signal.signal(signal.SIGTERM, on_term)
        return self

    def __exit__(self, kind, error, trace):
        if self.keep or self.n_failed:
            print(f"# consoles and logs: {self.folder}", flush=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self):
        """Raises kernel.Missing when a test machine cannot be made here."""
        if shutil.which(QEMU) is None:
            raise kernel.Missing(f"{QEMU} is missing (qemu-system-x86)")
        self.kernel = kernel.get(self.cache)
        self.initrd = os.path.join(self.folder, "initrd")
        Image(self.initrd, self.kernel, self.programs)

    def net(self, n_guests):
        folder = os.path.join(self.folder, f"net{n_guests}")
        os.makedirs(folder, exist_ok=True)
        return Net(folder, self.kernel, self.initrd, n_guests, self.seed)

    def run(self, scenarios):
        start = time.monotonic()
        print(f"1..{len(scenarios)}", flush=True)
        try:
            self.prepare()
        except kernel.Missing as missing:
            for function in scenarios:
                print(f"ok - rdma::{function.__name__} # SKIP {missing}")
            return
        print(f"# seed {self.seed}; programs and kernel {self.kernel.version} packed in {time.monotonic() - start:.1f} s", flush=True)
        for n_guests in sorted({function.guests for function in scenarios}):
            net = self.net(n_guests)
            try:
                for function in scenarios:
                    if function.guests == n_guests:
                        self.run_one(net, function)
            finally:
                net.close()
        print(f"# {len(scenarios)} scenarios, {self.n_failed} failed, {time.monotonic() - start:.0f} s")

    def run_one(self, net, function):
        """One scenario: its line, and what explains it."""
        start = time.monotonic()
        why, trace = [], ""
        try:
            net.begin(function.__name__)
            begun = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, function.limit_s * Patience.factor)
            try:
                function(net)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Skipped as skipped:
            print(f"ok - rdma::{function.__name__} # SKIP {skipped}", flush=True)
            return
        except Failed as failed:
            why.append(str(failed))
            trace = places(failed)
        except OverTime as over:
            why.append(f"not done in {function.limit_s * Patience.factor:.0f} s")
            trace = places(over)
        except Exception:  # a scenario's own mistake fails it, and only it
            why += traceback.format_exc().strip().splitlines()
        why += net.trouble()
        took = time.monotonic() - start
        if why:
            self.n_failed += 1
        print(f"{'not ok' if why else 'ok'} - rdma::{function.__name__}")
        spent = f"{took:.1f} s" if why else f"{took:.1f} s, {begun - start:.1f} s of it set-up"
        if Patience.factor > 1.5:
            spent += f"; this machine is {Patience.factor:.1f} times slower than it should be"
        print(f"# {function.__name__}: {spent}", flush=True)
        for line in net.lines:
            print(f"# {function.__name__}: {line}")
        if net.values:
            print(f"# {function.__name__}: " + " ".join(f"{key}={value}" for key, value in net.values.items()))
        if why:
            self.explain(net, function.__name__, why, trace)
        sys.stdout.flush()

    def explain(self, net, name, why, trace):
        for line in why:
            for part in line.splitlines():
                print(f"#   {part}")
        if trace:
            print(f"#   at {trace}")
        folder = os.path.join(self.folder, name)
        os.makedirs(folder, exist_ok=True)
        for guest in net.guests:
            try:
                for line in guest.report(folder):
                    print(f"#     {line}")
            except Failed as failed:
                print(f"#     {guest.name}: {failed}")
            if guest.machine:  # whatever it was, the next scenario has a fresh one
                guest.machine.power_off()


def places(error):
    """Where in the scenario it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    return ", ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames[1:])
