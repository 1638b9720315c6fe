"""The guests of a scenario and the wires between them. A wire is a pair of Unix datagram sockets: it survives the power-off of
either end, and it holds a sender back instead of losing packets."""
import os
import random
import time

from harness.guest import NICS, RESET_TIMEOUT_S, Guest
from harness.machine import Failed, Machine, Patience

NAMES = "ab"


class Net:
    def __init__(self, folder, kernel, initrd, n_guests, seed):
        assert 1 <= n_guests <= len(NAMES)
        self.folder, self.kernel, self.initrd = folder, kernel, initrd
        self.n_boots = 0
        self.seed = seed
        self.random = random.Random(seed)
        self.guests = [Guest(NAMES[i], i + 1, self.make_machine) for i in range(n_guests)]
        self.values = {}
        self.lines = []
        for guest in self.guests:
            setattr(self, guest.name, guest)

    # -- for scenarios

    def daemons(self, **conf):
        """One in each guest; started together."""
        started = [guest.daemon(wait=False, **conf) for guest in self.guests]
        for daemon in started:
            daemon.wait_ready()
        return started

    def figures(self, **values):
        self.values.update(values)

    def say(self, text):
        self.lines.append(text)

    def heal(self):
        for guest in self.guests:
            if guest.alive:
                guest.heal()

    @property
    def slow(self):
        """1.0, or how many times slower than two idle cores this machine is now."""
        return Patience.factor

    @staticmethod
    def clock():
        return time.monotonic()

    # -- for the runner

    def make_machine(self, guest):
        self.n_boots += 1
        words = f"kvx.name={guest.name} kvx.number={guest.number} kvx.nics={NICS}"
        nics = [(self.wire(guest, nic), f"52:54:00:77:{nic:02x}:{guest.number:02x}") for nic in range(NICS)]
        return Machine(os.path.join(self.folder, f"{self.n_boots:02}-{guest.name}"), self.kernel, self.initrd, words, nics)

    def wire(self, guest, nic):
        if len(self.guests) == 1:
            return f"hubport,hubid={nic}"  # a wire that leads nowhere: the device talks to itself
        other = self.guests[2 - guest.number]
        mine, theirs = (os.path.join(self.folder, f"w{nic}{g.name}") for g in (guest, other))
        return f"dgram,local.type=unix,local.path={mine},remote.type=unix,remote.path={theirs}"

    def boot(self):
        """Boots what is off; all of them at once."""
        off = [guest for guest in self.guests if not guest.alive]
        for guest in off:
            guest.boot(wait=False)
        for guest in off:
            try:
                guest.wait_ready()
            except Failed:  # a kernel that does not come up is not what is tested here; one that does not twice is
                guest.power_off()
                guest.boot()

    def begin(self, name):
        """Everything as a scenario may expect it."""
        self.values, self.lines = {}, []
        self.random = random.Random(f"{self.seed} {name}")
        kept = [guest for guest in self.guests if guest.alive]
        resets = [guest.reset() for guest in kept]
        self.boot()
        for guest, reset in zip(kept, resets):
            done = reset.wait(RESET_TIMEOUT_S)
            if done.rc != 0:
                guest.power_off()  # the next scenario has a new one
                raise Failed(f"{guest.name}: what the scenario before left cannot be undone: {done.out} {done.err}")

    def trouble(self):
        """What no scenario may cause, as lines: kernel trouble on a console, a daemon that has ended by itself."""
        lines = [f"{guest.name}: console: {line}" for guest in self.guests if guest.machine for line in guest.machine.trouble()]
        for guest in self.guests:
            lines += [f"{guest.name}: {daemon.name} has ended with {daemon.process.rc}" for daemon in guest.daemons if daemon.crashed]
        return lines

    def close(self):
        for guest in self.guests:
            if guest.machine:
                guest.machine.power_off()
