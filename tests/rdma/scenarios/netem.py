"""What a lossy wire does to the packets of a reliable connection, in both directions: transfers get slower, and that is all."""
from harness.engines import Drive, Serve, counter, promises, show
from harness.scenario import check, scenario

PROFILES = {
    "loss": "loss 1%",
    "reorder": "delay 2ms reorder 95% 50%",
    "duplicate": "duplicate 10%",
    "corrupt": "corrupt 1%",
    "delay": "delay 5ms",
    "mix": "loss 0.5% delay 1ms reorder 97% duplicate 5% corrupt 0.5%",
}
# 7: this device then tries without end, so nothing but time is lost.
PATIENT = {"verbs.retry_count": 7}


def run(net, profile, count, timeout, sets=None, all_ok=True):
    a, b = net.a, net.b
    da, db = net.daemons(sets=sets or PATIENT)
    serve = Serve(b, db)
    drive = Drive(a, da, serve, count=count, ops=8, sizes="4K:64K", big_pct=0, deadline_ms=60000).ready()
    for guest in net.guests:
        guest.netem(PROFILES[profile], 1)
    figures = drive.wait(timeout)
    show(net, figures, "bytes_ok", "seconds", "ok_p50_ms", "ok_p99_ms", "ok_max_ms")
    promises(figures, all_ok)
    return da


@scenario(sets="short long", limit_s=150)
def netem_mix(net):
    """Loss, reordering, duplicates, corruption and delay together: every transfer succeeds, none is wrong."""
    run(net, "mix", 200, 120)


@scenario(sets="long", limit_s=150)
def netem_loss(net):
    """1 % of the packets are lost, both ways."""
    run(net, "loss", 400, 120)


@scenario(sets="long", limit_s=150)
def netem_reorder(net):
    """One packet in twenty comes late, after others."""
    run(net, "reorder", 400, 120)


@scenario(sets="long", limit_s=150)
def netem_duplicate(net):
    """One packet in ten comes twice."""
    run(net, "duplicate", 400, 120)


@scenario(sets="long", limit_s=150)
def netem_corrupt(net):
    """One packet in a hundred has a bit turned over."""
    run(net, "corrupt", 400, 120)


@scenario(sets="long", limit_s=150)
def netem_delay(net):
    """Five milliseconds each way."""
    run(net, "delay", 400, 120)


@scenario(sets="long", limit_s=150)
def netem_no_patience(net):
    """A lossy wire and a single retry: queue pairs break again and again, and every transfer still ends as it must."""
    da = run(net, "loss", 200, 120, sets={"verbs.retry_count": 1, "verbs.timeout": 14, "peer.fallback": "false"}, all_ok=False)
    lost = counter(da, "eps_lost")
    net.figures(eps_lost=lost)
    check(lost > 0, "queue pairs broke")
