"""A RoCE port that is down, or has no address, when its daemon starts: it is waited for. Transfers go over TCP until then, and over verbs
within seconds after, without a restart."""
import time

from harness.engines import Drive, Serve, brief, lanes, promises, show
from harness.scenario import check, scenario

VERBS_S = 15  # from the port's return to a lane that uses it, with traffic


def port(daemon):
    return next(row for row in daemon.ctl("devices")["devices"] if row["name"] == "rxe0:1")


def used(daemon):
    """Transports of the lanes that are up."""
    return {row["transport"] for row in lanes(daemon) if row["state"] == "up"}


def start_without(net, words):
    """Daemons and transfers while b's port is not there; `words` are in the reason that b gives."""
    da, db = net.daemons()
    row = port(db)
    check(row["state"] == "waiting" and words in row["reason"], f"b's port waits, and says for what: {row['state']}, {row['reason']}")
    check(port(da)["state"] == "usable", "a's port is fine")
    drive = Drive(net.a, da, Serve(net.b, db), require=None, ops=8, sizes="4K:64K", big_pct=0).ready()
    net.a.run("sleep 3")
    check(used(da) == {"fabric"}, f"transfers go over TCP: {used(da)}")
    return da, db, drive


def expect_verbs(net, da, db, drive):
    begun, limit_s = time.monotonic(), VERBS_S * net.slow
    while used(da) != {"verbs"} and time.monotonic() - begun < limit_s:
        net.a.run("sleep 0.2")
    net.figures(verbs_s=round(time.monotonic() - begun, 1))
    check(used(da) == {"verbs"}, f"transfers go over verbs {limit_s:.0f} s after the port came: {used(da)}, b: {port(db)}")
    row = port(db)
    check(row["state"] == "usable" and row["reason"] == "" and row["gid"].endswith(net.b.ip(1)), f"b shows its port as it is now: {row}")
    net.a.run("sleep 2")
    figures = drive.stop()
    show(net, figures)
    promises(figures, all_ok=True)
    check(figures["accepted"] > 0, f"there was traffic: {brief(figures)}")


@scenario(sets="long", limit_s=150)
def late_port(net):
    """The interface of b's RoCE device is down when its daemon starts, and comes up later."""
    net.b.link(1, False)
    da, db, drive = start_without(net, "ip link set eth1 up")
    net.b.link(1, True)
    expect_verbs(net, da, db, drive)


@scenario(sets="long", limit_s=150)
def late_address(net):
    """The interface of b's RoCE device is up when its daemon starts, and gets its address later."""
    net.b.run("ip addr flush dev eth1 scope global")
    try:
        da, db, drive = start_without(net, "address")
    finally:
        net.b.run(f"ip addr add {net.b.ip(1)}/24 dev eth1")
    expect_verbs(net, da, db, drive)
