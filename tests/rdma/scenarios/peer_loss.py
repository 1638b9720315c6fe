"""The other node's daemon, or the whole node, is gone from one moment to the next. What was in flight ends in bounded time, and when the
node is back, under a new epoch or altogether new, transfers go again without anything being restarted here."""
from harness.daemon import LOST_MS
from harness.engines import Drive, Serve, brief, promises, show
from harness.scenario import check, scenario

FAST_MS = 1000  # the control connection breaks at once
WORST_MS = 5000  # nothing says that the node is gone
STILL_S = 12  # a machine: the engines' own connection lasts for 30
NO_VERBS = {"verbs.enable": "false"}
BACK_S = 25  # daemons look for each other with a back-off of up to 5 s


def begin(net, sets=None, **values):
    da, db = net.daemons(sets=sets)
    serve = Serve(net.b, db)
    drive = Drive(net.a, da, serve, window=32, ops=8, sizes="16K:256K", deadline_ms=30000, **values).ready()
    net.a.run("sleep 2")
    return db, serve, drive


def again(drive, mark):
    check(drive.ok_after(mark, BACK_S), f"transfers succeed again within {BACK_S} s of the mark {mark}")


def times(net, figures, mark, limit_ms, slow=None):
    """What failed since the mark: each took no longer than the limit, from its submission or from the mark. slow: what net.slow was
    then."""
    took = figures[f"mark_{mark}_worst_fail_ms"]
    net.figures(**{f"{mark}_outstanding": figures[f"mark_{mark}_outstanding"], f"{mark}_fails": figures[f"mark_{mark}_fails"],
                   f"{mark}_to_terminal_worst_ms": took})
    check(figures[f"mark_{mark}_fails"] > 0, f"transfers were under way and failed: {brief(figures)}")
    check(took < limit_ms * (slow or net.slow), f"each ended within {limit_ms} ms: {brief(figures)}")
    return took


@scenario(sets="short long", limit_s=120)
def peer_killed(net):
    """kill -9 of the peer's daemon: terminal events within 1 s; the restarted daemon, a new epoch, is used at once."""
    db, serve, drive = begin(net)
    serve.kill("kill", db)
    net.a.run("sleep 3")
    drive.mark("back")
    db.start()
    again(drive, "back")
    figures = drive.stop()
    show(net, figures)
    times(net, figures, "kill", FAST_MS)
    net.figures(back_ms=figures.get("mark_back_first_ok_ms", -1),
                statuses={k[7:]: v for k, v in figures.items() if k[:7] == "status_"},
                serve_trial_late_bytes=figures["serve_trial_late_bytes"], serve_reconnects=figures["serve_reconnects"])
    promises(figures)
    check(figures["serve_daemon_losses"] == 1 and figures["serve_reconnects"] == 1,
          f"the other engine has registered again: {brief(figures)}")


@scenario(sets="long", limit_s=240)
def peer_killed_often(net):
    """As peer_killed, five times in a row."""
    db, serve, drive = begin(net)
    for i in range(5):
        serve.kill(f"kill{i}", db)
        net.a.run("sleep 2")
        db.start()
        drive.mark(f"back{i}")
        again(drive, f"back{i}")
        net.a.run("sleep 1")
    figures = drive.stop()
    show(net, figures)
    worst = max(times(net, figures, f"kill{i}", FAST_MS) for i in range(5))
    net.figures(worst_ms=worst, back_ms=[figures.get(f"mark_back{i}_first_ok_ms", -1) for i in range(5)])
    promises(figures)


@scenario(sets="long", limit_s=150)
def peer_powered_off(net):
    """The peer's machine is switched off: terminal events within 5 s; a new machine at its address is used."""
    _, _, drive = begin(net, reconnect=1)
    slow = net.slow
    drive.mark("off")
    net.b.power_off()
    net.a.run("sleep 6")
    net.b.boot()
    db = net.b.daemon()
    Serve(net.b, db)
    drive.mark("back")
    again(drive, "back")
    figures = drive.stop()
    show(net, figures)
    times(net, figures, "off", WORST_MS, slow)
    net.figures(back_ms=figures.get("mark_back_first_ok_ms", -1))
    promises(figures)


def stand_still(net, who, stop, go_on, sets=None, **values):
    """A machine stops for 12 s, and goes on: what it has in its queues lands nowhere, what is still on its way to it neither, and the
    nodes meet again."""
    # Else it is not lost meanwhile where the harness gives slow machines more time.
    lost_ms = round(min(LOST_MS * net.slow, STILL_S * 1000 * 2 / 3))
    _, serve, drive = begin(net, sets={"peer.lost_ms": lost_ms, **(sets or {})}, **values)
    other = net.a if who is net.b else net.b
    drive.mark("freeze")
    # A wire of the harness holds a sender back when nobody takes its packets; a real one loses them.
    other.block("all", "out")
    stop()
    other.run(f"sleep {STILL_S}", timeout=40)
    go_on()
    other.unblock()
    drive.mark("thaw")
    again(drive, "thaw")
    figures = drive.stop()
    show(net, figures)
    times(net, figures, "freeze", WORST_MS + (STILL_S * 1000 if who is net.a else 0))
    net.figures(back_ms=figures.get("mark_thaw_first_ok_ms", -1), imports=figures["imports"],
                statuses={k[7:]: v for k, v in figures.items() if k[:7] == "status_"},
                **{k: figures.get(k) for k in ("serve_arrivals_failed", "serve_verdict_mismatch", "serve_verified_before")})
    promises(figures)
    check(figures["summary"], f"the engines are still connected: {brief(figures)}")
    check(figures["import_losses"] > 0, f"the nodes have lost each other: {brief(figures)}")
    lost = serve.stop()
    check(lost["late_bytes"] == 0 and lost["zone_bytes"] == 0 and lost["guard_bytes"] == 0, f"nothing lands later: {brief(lost)}")


@scenario(sets="long", limit_s=120)
def peer_frozen(net):
    """The peer's machine stops for 12 s and goes on."""
    stand_still(net, net.b, net.b.freeze, net.b.thaw)


@scenario(sets="long", limit_s=120)
def peer_paused(net):
    """As peer_frozen; the peer does not know that time went by: to it, its leases are young."""
    stand_still(net, net.b, net.b.pause, net.b.resume)


@scenario(sets="long", limit_s=120)
def own_frozen(net):
    """The submitter's machine stops for 12 s and goes on; meanwhile the peer has given up on it, and its engine was told so."""
    stand_still(net, net.a, net.a.freeze, net.a.thaw)


@scenario(sets="long", limit_s=120)
def own_paused(net):
    """As own_frozen; the submitter does not know that time went by."""
    stand_still(net, net.a, net.a.pause, net.a.resume)


@scenario(sets="long", limit_s=120)
def peer_frozen_tcp(net):
    """As peer_frozen, over TCP, where it is the daemons that place the bytes."""
    stand_still(net, net.b, net.b.freeze, net.b.thaw, sets=NO_VERBS, require="fabric")


@scenario(sets="long", limit_s=120)
def own_frozen_tcp(net):
    """As own_frozen, over TCP."""
    stand_still(net, net.a, net.a.freeze, net.a.thaw, sets=NO_VERBS, require="fabric")


@scenario(sets="long", limit_s=120)
def own_daemon_killed(net):
    """kill -9 of the submitter's own daemon: each transfer ends once, the engine registers again and goes on."""
    da, db = net.daemons()
    serve = Serve(net.b, db)
    drive = Drive(net.a, da, serve, window=32, ops=8, sizes="16K:256K").ready()
    net.a.run("sleep 2")
    drive.mark("kill")
    da.kill()
    net.a.run("sleep 2")
    da.start()
    drive.mark("back")
    again(drive, "back")
    figures = drive.stop()
    show(net, figures)
    times(net, figures, "kill", FAST_MS)
    net.figures(back_ms=figures.get("mark_back_first_ok_ms", -1))
    promises(figures)
    check(figures["daemon_losses"] == 1 and figures["reconnects"] == 1, f"one loss, one reconnect: {brief(figures)}")
