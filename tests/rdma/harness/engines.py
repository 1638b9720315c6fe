"""Engines in guests (../driver): `serve` has memory, `drive` submits transfers to it and keeps the books. The engines talk to each other
on a network of their own (eth2), so that no fault of a test touches what they tell each other."""
from harness.machine import Failed
from harness.scenario import check

CHANNEL_NIC = 2
CHANNEL_PORT = 9900
# What must be 0 in every run, whatever was done to it.
ZERO = ("lost", "duplicated", "wrong", "misplaced", "late", "overdue", "wrong_bytes")
SHOWN = ("accepted", "completed", "ok", "failed") + ZERO[:6]


def pid_of(daemon):
    return daemon.ctl("status")["pid"]


def flags(values):
    words = []
    for key, value in values.items():
        words += ["--" + key.replace("_", "-"), str(value)]
    return words


class Serve:
    """One `rdma_engine serve`; `process` is the harness's."""

    def __init__(self, guest, daemon, port=CHANNEL_PORT, **values):
        self.guest, self.address = guest, f"{guest.ip(CHANNEL_NIC)}:{port}"
        values = {"listen": self.address, "socket": daemon.socket, "control": "-", **values}
        self.process = guest.start(["rdma_engine", "serve"] + flags(values))
        self.process.expect("event=ready", 30)

    def tell(self, line):
        self.process.send(line)

    def kill(self, name, daemon):
        """kill -9 of a daemon of the same guest; the drives have the moment as the mark `name`."""
        self.tell(f"kill {name} {pid_of(daemon)}")
        self.process.expect("event=killed", 20)
        daemon.process.wait(20)

    def stop(self, timeout=60):
        """Its own figures, once all drives have left."""
        self.tell("stop")
        return self.process.wait(timeout).figures()


class Drive:
    """One `rdma_engine drive` against a Serve; transfers must take verbs unless `require` says otherwise."""

    def __init__(self, guest, daemon, serve, **values):
        values = {"connect": serve.address, "socket": daemon.socket, "control": "-", "require": "verbs", **values}
        values = {key: value for key, value in values.items() if value is not None}
        self.deadline_s = values.get("deadline_ms", 30000) / 1000
        self.process = guest.start(["rdma_engine", "drive"] + flags(values))

    def ready(self, timeout=60):
        """Waits until transfers can be submitted."""
        self.process.expect("event=imported", timeout)
        return self

    def tell(self, line):
        self.process.send(line)

    def mark(self, name):
        """Names this moment: the figures have how long after it what was in flight has ended."""
        self.tell("mark " + name)
        self.process.expect("command=mark " + name, 20)

    def ok_after(self, name, timeout):
        """Waits until a transfer that was submitted after the mark has succeeded; false: none has."""
        try:
            self.process.expect(f"event=ok_after mark={name} ", timeout)
            return True
        except Failed:
            return False

    def stop(self, timeout=None):
        self.tell("stop")
        return self.wait(timeout or self.deadline_s + 120)

    def wait(self, timeout):
        return self.process.wait(timeout).figures()


def show(net, figures, *more):
    net.figures(**{key: figures[key] for key in SHOWN + more if key in figures})


def brief(figures):
    """What a failed check shows: all that is not 0 or text."""
    return {key: value for key, value in figures.items() if value and not isinstance(value, str)}


def promises(figures, all_ok=False):
    """What holds for every run: each accepted transfer ended once, in time, and no byte is wrong, elsewhere or late."""
    check(figures["accepted"] > 0, f"transfers were accepted: {brief(figures)}")
    for key in ZERO:
        check(figures[key] == 0, f"{key} is 0: {brief(figures)}")
    check(figures["completed"] == figures["accepted"], f"each has ended: {brief(figures)}")
    if all_ok:
        check(figures["ok"] == figures["accepted"], f"each has succeeded: {brief(figures)}")
        check(figures.get("serve_arrivals_missing", 1) == 0, f"each was told to the other side: {brief(figures)}")


def lanes(daemon):
    """Rows of `kvxferctl lanes`."""
    return daemon.ctl("lanes")["lanes"]


def counter(daemon, name):
    """A counter of `kvxferctl devices`, over all devices."""
    return sum(row.get("counters", {}).get(name, 0) for row in daemon.ctl("devices")["devices"])
