"""After an unregister, an engine's goodbye, a cancel, or the loss of a peer nothing lands any more. The memory is filled with a canary the
moment the call returns or the event comes, and looked at again later. The same test must see late bytes when the fence is missing."""
from harness.engines import Drive, Serve, brief, lanes, promises, show
from harness.scenario import check, scenario

FENCED = "kvxferd"
# Queue pairs and registrations that the daemon destroys go on.
UNFENCED = "env LD_PRELOAD=/usr/bin/libkvx_weak_fence.so kvxferd"


def trials(net, how, n, timeout):
    a, b = net.a, net.b
    da, db = net.daemons()
    serve = Serve(b, db, trial=how, trials=n, trial_every_ms=400, trial_watch_ms=500)
    drive = Drive(a, da, serve, window=32, ops=8, sizes="64K:512K", big_pct=10, read_pct=20).ready()
    for _ in range(n):
        serve.process.expect(r"(trial|bad)=(unregister|close)", timeout / n * 4)
    figures = drive.stop()
    show(net, figures)
    net.figures(trials=figures["serve_trials"], hit=figures["serve_trials_hit"], late_trials=figures["serve_trial_late"],
                fence_p50_ms=figures["serve_fence_p50_ms"], fence_max_ms=figures["serve_fence_max_ms"])
    promises(figures)
    check(figures["serve_trials"] == n and figures["serve_trials_hit"] == n, f"each trial met transfers in flight: {brief(figures)}")
    check(figures["serve_trial_late_bytes"] == 0, f"no byte is late: {brief(figures)}")
    check(figures["serve_unregister_timeouts"] == 0, f"each was done in time: {brief(figures)}")


@scenario(sets="short", limit_s=120)
def fence_unregister(net):
    """Unregister and goodbye under inbound writes, six in turn."""
    trials(net, "both", 6, 90)


@scenario(sets="long", limit_s=300)
def fence_unregister_long(net):
    """Unregister and goodbye under inbound writes, forty in turn."""
    trials(net, "both", 40, 270)


def partition_under_load(net, program):
    """The wire for data is slow, so that megabytes are queued on it; then the control connection is cut: each side declares the other
    lost and fences on its own, while the queued packets go on arriving."""
    a, b = net.a, net.b
    da, db = net.daemons(program=program)
    serve = Serve(b, db, watch_ms=4000)
    drive = Drive(a, da, serve, window=16, ops=4, sizes="256K:1M", big_pct=30, read_pct=0, form_pct=0, deadline_ms=60000).ready()
    a.netem("rate 40mbit", 1)
    a.run("sleep 3")
    drive.mark("cut")
    b.block("peers")
    a.run("sleep 12", timeout=30)
    a.netem(None, 1)
    b.unblock()
    drive.mark("heal")
    check(drive.ok_after("heal", 25), "the nodes meet again")
    return drive.stop()


@scenario(sets="long", limit_s=120)
def fence_on_loss(net):
    """Both sides lose each other with megabytes under way: what they tell their engines comes after their fences."""
    figures = partition_under_load(net, FENCED)
    show(net, figures)
    net.figures(cut_outstanding=figures["mark_cut_outstanding"], cut_fails=figures["mark_cut_fails"],
                cut_worst_fail_ms=figures["mark_cut_worst_fail_ms"], arrivals_failed=figures["serve_arrivals_failed"])
    promises(figures)
    check(figures["mark_cut_fails"] > 0, f"transfers were in flight and failed: {brief(figures)}")


@scenario(sets="short long", limit_s=120)
def fence_self_check(net):
    """With daemons that leave the fence out the same test sees late bytes: it is not blind."""
    figures = partition_under_load(net, UNFENCED)
    show(net, figures)
    check(figures["late"] > 0, f"late bytes are seen: {brief(figures)}")


def cancel_under_load(net, program, seconds):
    """The wire is slow both ways, megabytes are queued, and everything is cancelled: what cannot be drained within transfer.fence_bound
    is cut off."""
    a, b = net.a, net.b
    da, db = net.daemons(program=program)
    serve = Serve(b, db, watch_ms=4000)
    drive = Drive(a, da, serve, window=16, ops=4, sizes="512K:1M", big_pct=20, form_pct=0, cancel_pct=80, cancel_max_ms=2000, watch_ms=4000,
                  deadline_ms=60000, zone="96M", max_bytes="4M").ready()
    for guest in net.guests:
        guest.netem("rate 40mbit", 1)
    a.run(f"sleep {seconds}", timeout=seconds + 20)
    figures = drive.stop()
    show(net, figures, "cancel_p50_ms", "cancel_max_ms")
    net.figures(cancelled=figures.get("status_CANCELLED", 0), resets=sum(row["resets"] for row in lanes(da)))
    return figures


@scenario(sets="long", limit_s=150)
def fence_cancel(net):
    """Cancels with megabytes under way that must be cut off: CANCELLED comes after the fence, on both sides, READ and WRITE."""
    figures = cancel_under_load(net, FENCED, 15)
    promises(figures)
    check(figures.get("status_CANCELLED", 0) > 10, f"transfers were cancelled: {brief(figures)}")
    check(net.values["resets"] > 0, f"lanes were cut off: {brief(figures)}")


@scenario(sets="long", limit_s=150)
def fence_cancel_self_check(net):
    """With daemons that leave the fence out the same test sees late bytes."""
    figures = cancel_under_load(net, UNFENCED, 15)
    check(figures["late"] > 0, f"late bytes are seen: {brief(figures)}")
