"""Queues that are far too small and far too many who want them: credits keep every queue from overflowing, and nobody is forgotten."""
from harness.engines import Drive, Serve, counter, promises
from harness.scenario import check, scenario

TINY = {"verbs.qps_per_lane": 1, "verbs.sq_depth": 16, "verbs.post_batch": 2, "verbs.max_rd_atomic": 1, "verbs.max_sge": 1,
        "verbs.stripe_bytes": "16K"}


def crowd(net, sets, clients, count, timeout, **values):
    a, b = net.a, net.b
    da, db = net.daemons(sets=sets)
    serve = Serve(b, db, drives=clients, zone="96M", source="4M")
    drives = [Drive(a, da, serve, name=f"d{i}", count=count, zone=f"{64 // clients}M", max_bytes="4M", **values) for i in range(clients)]
    all_figures = [drive.wait(timeout) for drive in drives]
    for figures in all_figures:
        promises(figures, all_ok=True)
    sums = {key: sum(figures[key] for figures in all_figures) for key in ("accepted", "completed", "lost", "bytes_ok")}
    worst = ("duplicated", "misplaced", "late", "ok_p50_ms", "ok_max_ms", "seconds")
    both = {key: max(figures[key] for figures in all_figures) for key in worst}
    net.figures(clients=clients, **sums, **both)
    for daemon in (da, db):
        check(counter(daemon, "eps_lost") == 0 and counter(daemon, "async_events") == 0, f"no queue overflowed: {daemon.log()[-800:]}")
    net.figures(signaled=counter(da, "signaled"), wrs=counter(da, "wrs"), doorbells=counter(da, "doorbells"))


@scenario(sets="long", limit_s=150)
def tiny_queues(net):
    """One queue pair of 16, two requests a doorbell, one READ in flight: 8 clients with 16 transfers each in flight."""
    crowd(net, TINY, 8, 15, 130, window=16, ops=32, sizes="4K:4K", big_pct=2, big="256K", deadline_ms=120000)


@scenario(sets="long", limit_s=200)
def many_ops(net):
    """Batches of 512 blocks of 4 KiB from 4 clients."""
    crowd(net, {}, 4, 60, 180, window=16, ops=512, sizes="4K:4K", big_pct=0)


@scenario(sets="long", limit_s=200)
def many_queue_pairs(net):
    """Eight queue pairs a lane, large ops striped over them."""
    crowd(net, {"verbs.qps_per_lane": 8, "verbs.stripe_bytes": "64K", "verbs.sq_depth": 128}, 2, 150, 180, window=8, ops=2,
          sizes="256K:1M", big_pct=10)
