"""A lane that is there stays there: the first transfer after a pause needs nothing made."""
from harness.engines import Drive, Serve, brief, counter, lanes, promises
from harness.scenario import check, scenario


def made(daemon):
    """Endpoints made so far, over all devices, and the lanes' generations."""
    return counter(daemon, "eps_made"), sorted(row["generation"] for row in lanes(daemon))


def latencies(net, daemon, serve, **values):
    figures = Drive(net.a, daemon, serve, window=1, ops=1, sizes="4K:4K", big_pct=0, form_pct=0, read_pct=50, watch_ms=0, **values).wait(90)
    promises(figures, all_ok=True)
    return figures


@scenario(sets="long", limit_s=150)
def after_idle(net):
    """Single 4 KiB transfers, each after 3 s of nothing: same lane, same endpoints, no set-up in their time."""
    da, db = net.daemons()
    serve = Serve(net.b, db, watch_ms=0)
    warm = latencies(net, da, serve, count=100)
    before = made(da), made(db)
    idle = latencies(net, da, serve, count=5, gap_ms=3000)
    after = made(da), made(db)
    net.figures(warm_p50_ms=warm["ok_p50_ms"], warm_max_ms=warm["ok_max_ms"], idle_p50_ms=idle["ok_p50_ms"], idle_max_ms=idle["ok_max_ms"],
                eps_made=[before[0][0], after[0][0]])
    check(before[0][0] > 0, f"endpoints are counted: {before}")
    check(before == after, f"nothing was made for them: {before} {after}")
    check(idle["ok_p50_ms"] < warm["ok_p50_ms"] * 3 + 20, f"no set-up in their time: {brief(idle)}")
