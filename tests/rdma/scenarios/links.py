"""The data network breaks and heals while transfers run: acknowledgements lost, RoCE cut, the link down. Every transfer ends within its
deadline and 3 s; none that succeeded is wrong; and traffic is back on its own, over new queue pairs."""
from harness.engines import Drive, Serve, brief, lanes, promises, show
from harness.scenario import check, scenario

DEADLINE_MS = 15000
BACK_S = 20  # after the fault is over; reconnects back off


# Fewer retries than 7, which this device takes for "without end"; and no way around verbs.
SETS = {"verbs.retry_count": 3, "peer.fallback": "false"}


def start(net, sets, **values):
    a, b = net.a, net.b
    da, db = net.daemons(sets=sets)
    serve = Serve(b, db, **{key: value for key, value in values.items() if key == "watch_ms"})
    drive = Drive(a, da, serve, ops=8, sizes="4K:64K", big_pct=0, deadline_ms=DEADLINE_MS, **values).ready()
    return da, db, drive


def generation(daemon):
    rows = lanes(daemon)
    return max((row["generation"] for row in rows), default=0)


def break_and_heal(net, times, fault, hold_s):
    """fault(net) while transfers run, for hold_s; then heal and wait until transfers succeed again."""
    da, _, drive = start(net, SETS)
    begun = generation(da)
    for i in range(times):
        net.a.run("sleep 1")
        drive.mark(f"cut{i}")
        fault(net)
        net.a.run(f"sleep {hold_s}", timeout=hold_s + 20)
        net.heal()
        drive.mark(f"heal{i}")
        check(drive.ok_after(f"heal{i}", BACK_S), f"after fault {i} transfers succeed again within {BACK_S} s")
    figures = drive.stop()
    show(net, figures, "ok_max_ms", "failed_max_ms")
    net.figures(statuses={key[7:]: value for key, value in figures.items() if key.startswith("status_")},
                back_ms=[figures.get(f"mark_heal{i}_first_ok_ms", -1) for i in range(times)],
                cut_worst_fail_ms=[figures[f"mark_cut{i}_worst_fail_ms"] for i in range(times)],
                generations=generation(da) - begun)
    promises(figures)
    return figures, generation(da) - begun


def acks_lost(net):
    net.b.block("roce", "out", 1)


@scenario(sets="short", limit_s=120)
def ack_loss(net):
    """Nothing comes back from the responder for 6 s: bytes land that the initiator never hears of."""
    figures, made = break_and_heal(net, 1, acks_lost, 6)
    check(figures["failed"] > 0 or made > 0, f"the loss was felt: {brief(figures)}")


@scenario(sets="long", limit_s=300)
def ack_loss_long(net):
    """As ack_loss, five times."""
    break_and_heal(net, 5, acks_lost, 10)


@scenario(sets="long", limit_s=120)
def request_loss(net):
    """Nothing gets to the responder for 6 s."""
    break_and_heal(net, 1, lambda net: net.a.block("roce", "out", 1), 6)


@scenario(sets="short", limit_s=120)
def flap(net):
    """The responder's link is down for 3 s: transfers are back, over new queue pairs."""
    _, made = break_and_heal(net, 1, lambda net: net.b.link(1, False), 3)
    check(made > 0, "the lane is a new one")


@scenario(sets="long", limit_s=300)
def flap_long(net):
    """As flap, ten times, on either side."""
    sides = [net.a, net.b] * 5
    break_and_heal(net, 10, lambda net: sides.pop().link(1, False), 3)


@scenario(sets="long", limit_s=120)
def partition_roce(net):
    """RoCE is cut both ways for 6 s, the control connection lives."""
    break_and_heal(net, 1, lambda net: net.b.block("roce", "both", 1), 6)


@scenario(sets="long", limit_s=120)
def partition_tcp(net):
    """The control connection is cut for 8 s, RoCE lives: both sides declare the other lost, fence, and meet again."""
    _, made = break_and_heal(net, 1, lambda net: net.b.block("peers"), 8)
    check(made > 0, "the loss was felt: the lane is a new one")


@scenario(sets="long", limit_s=120)
def partition_all(net):
    """Both are cut for 8 s."""
    def cut(net):
        net.b.block("peers")
        net.b.block("roce", "both", 1)
    break_and_heal(net, 1, cut, 8)


@scenario(sets="long", limit_s=180)
def slow_wire(net):
    """A wire so slow that acknowledgements come too late: lanes are reset again and again with megabytes under way."""
    da, _, drive = start(net, {"verbs.retry_count": 1, "verbs.timeout": 14, "peer.fallback": "false"}, watch_ms=3000)
    for guest in net.guests:
        guest.netem("rate 30mbit", 1)
    net.a.run("sleep 30", timeout=50)
    for guest in net.guests:
        guest.netem(None, 1)
    drive.mark("heal")
    check(drive.ok_after("heal", BACK_S), f"transfers succeed again within {BACK_S} s")
    figures = drive.stop()
    show(net, figures, "ok_max_ms", "failed_max_ms")
    net.figures(statuses={key[7:]: value for key, value in figures.items() if key.startswith("status_")}, generation=generation(da))
    promises(figures)
    check(generation(da) > 1, "lanes were reset")
