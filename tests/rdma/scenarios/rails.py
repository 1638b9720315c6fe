"""Two devices on each node: a lane has a leg on each, and goes on with one when the other's link is down."""
import time

from harness.engines import Drive, Serve, brief, lanes, promises, show
from harness.scenario import check, scenario


def legs(daemon):
    rows = [row for row in lanes(daemon) if row["state"] == "up"]
    return max((len(row["legs"]) for row in rows), default=0)


def legs_become(daemon, n, timeout_s):
    end = time.monotonic() + timeout_s
    while legs(daemon) != n:
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True


@scenario(sets="long", limit_s=150)
def two_rails(net):
    """Both devices carry traffic; with one link down transfers go on over the other; when it is back both are used again."""
    for guest in net.guests:
        guest.add_rail(1)
    da, db = net.daemons(sets={"verbs.stripe_bytes": "64K", "peer.fallback": "false"})
    serve = Serve(net.b, db)
    drive = Drive(net.a, da, serve, ops=8, sizes="16K:256K", deadline_ms=20000).ready()
    check(legs(da) == 2, f"a leg on each device: {lanes(da)}")
    net.a.run("sleep 3")
    posted = [row["counters"]["wrs"] for row in da.ctl("devices")["devices"] if row.get("counters")]
    check(len([wrs for wrs in posted if wrs > 10]) == 2, f"both devices carry traffic: {posted}")
    drive.mark("down")
    net.b.link(1, False)
    check(drive.ok_after("down", 20), "transfers go on")
    check(legs_become(da, 1, 20), f"over the other device: {lanes(da)}")
    drive.mark("one")
    check(drive.ok_after("one", 10), "and go on")
    net.b.link(1, True)
    drive.mark("up")
    check(legs_become(da, 2, 30), f"both devices are used again: {lanes(da)}")
    drive.mark("both")
    check(drive.ok_after("both", 10), "and transfers go over them")
    figures = drive.stop()
    show(net, figures, "ok_max_ms")
    net.figures(wrs_per_device=posted, after_down_ms=figures["mark_down_first_ok_ms"],
                statuses={key[7:]: value for key, value in figures.items() if key.startswith("status_")})
    promises(figures)
    check(figures["ok"] > 0, f"{brief(figures)}")
