"""Transfers between two nodes over verbs, with nothing in their way: explicit ops, block lists and streams, READ and WRITE, 4 KiB to
4 MiB, many in flight, some cancelled, some with a deadline that cannot be met."""
from harness.engines import Drive, Serve, brief, promises, show
from harness.scenario import check, scenario


def run(net, count, timeout, all_ok=True, **values):
    a, b = net.a, net.b
    da, db = net.daemons()
    serve = Serve(b, db)
    drive = Drive(a, da, serve, count=count, ops=8, **values)
    figures = drive.wait(timeout)
    show(net, figures, "bytes_ok", "reads_ok", "writes_ok", "block_lists", "streams", "mb_per_s", "ok_p50_ms", "ok_p99_ms", "ok_max_ms")
    promises(figures, all_ok)
    others = [key for key in figures if key.startswith("transport_") and key != "transport_verbs"]
    check(not others and figures["transport_verbs"] >= figures["ok"], f"all went over verbs: {brief(figures)}")
    return figures


@scenario(sets="short", limit_s=120)
def basic(net):
    """1,000 transfers arrive, each byte where it belongs."""
    run(net, 1000, 100)


@scenario(sets="long", limit_s=400)
def basic_long(net):
    """10,000 transfers arrive, each byte where it belongs."""
    run(net, 10000, 380)


@scenario(sets="long", limit_s=120)
def cancels_and_deadlines(net):
    """Cancelled at random, or with a deadline that cannot be met: each ends once, and nothing is late."""
    figures = run(net, 600, 100, all_ok=False, cancel_pct=40, short_deadline_pct=30, watch_ms=1000, cancel_max_ms=60)
    net.figures(cancelled=figures.get("status_CANCELLED", 0), deadline=figures.get("status_DEADLINE", 0))
    check(figures.get("status_CANCELLED", 0) > 0, f"some were cancelled under way: {brief(figures)}")
