"""An engine is killed in the middle of its transfers: its node stops them, nothing lands late, what it had is released, and others do
not notice."""
from harness.engines import CHANNEL_PORT, Drive, Serve, brief, promises, show
from harness.scenario import check, scenario


def count(daemon, what):
    return daemon.ctl("status")[what]


@scenario(sets="long", limit_s=150)
def submitter_killed(net):
    """kill -9 of the engine that writes, twice: after it nothing lands, another engine's transfers all succeed."""
    a, b = net.a, net.b
    da, db = net.daemons()
    serve = Serve(b, db, orphan_ms=3500)
    other_serve = Serve(b, db, port=CHANNEL_PORT + 1, name="other")
    other = Drive(a, da, other_serve, name="other", window=2, ops=4, sizes="4K:64K", big_pct=0).ready()
    for _ in range(2):
        victim = Drive(a, da, serve, name="victim", window=32, ops=8, sizes="64K:1M", read_pct=0, big_pct=5).ready()
        a.run("sleep 3")
        victim.process.kill()
        victim.process.wait(10)
        a.run("sleep 6")
    figures = other.stop()
    show(net, figures)
    promises(figures, all_ok=True)
    killed = serve.stop()
    net.figures(**{key: killed[key] for key in ("orphans", "orphan_silent", "arrivals_failed", "late_bytes", "zone_bytes")})
    check(killed["orphans"] == 2, f"both were in the middle of it: {brief(killed)}")
    check(killed["arrivals_failed"] > 0, f"this side was told: {brief(killed)}")
    for key in ("late_bytes", "zone_bytes", "guard_bytes", "misplaced", "corrupt", "missing"):
        check(killed[key] == 0, f"{key} is 0: {brief(killed)}")
    # One was announced to the other engine, but not submitted yet.
    check(killed["orphan_silent"] <= 2, f"each transfer's failure was told: {brief(killed)}")
    check(count(da, "transfers") == 0, "no transfer is left")


@scenario(sets="long", limit_s=150)
def owner_killed(net):
    """kill -9 of the engine that is written to: once its daemon has let go of its region nothing lands, and the writer is told."""
    a, b = net.a, net.b
    da, db = net.daemons()
    before = count(db, "regions")
    serve = Serve(b, db, keeper=1, trial_watch_ms=2000)
    drive = Drive(a, da, serve, window=32, ops=8, sizes="64K:1M", read_pct=0, big_pct=5, reconnect=1).ready()
    a.run("sleep 3")
    pid = b.run("pidof rdma_engine").out.split()
    drive.mark("kill")
    b.run(f"kill -9 {max(map(int, pid))}")  # the engine, not its keeper
    kept = serve.process.wait(60).figures()
    net.figures(gone_ms=kept["gone_ms"], touched_bytes=kept["touched_bytes"], late_bytes=kept["late_bytes"])
    check(kept["late_bytes"] == 0 and kept["guard_bytes"] == 0, f"nothing lands after the region is gone: {kept}")
    check(kept["touched_bytes"] > 0, f"writes were under way: {kept}")
    check(count(db, "regions") == before, "its region is released")
    Serve(b, db)
    drive.mark("back")
    check(drive.ok_after("back", 25), "with a new engine there transfers succeed again")
    figures = drive.stop()
    show(net, figures)
    net.figures(kill_to_terminal_worst_ms=figures["mark_kill_worst_fail_ms"], back_ms=figures.get("mark_back_first_ok_ms", -1))
    promises(figures)
    check(figures["mark_kill_fails"] > 0, f"transfers were in flight and failed: {brief(figures)}")
