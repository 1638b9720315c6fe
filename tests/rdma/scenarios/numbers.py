"""How fast: kvxfer against perftest on the same device, in the same guests, the two taking turns in one run; medians. The soft device
is slow and its times mean nothing by themselves: only these ratios do."""
from statistics import median

from harness.perftest import perftest
from harness.scenario import check, scenario

MB = 1 << 20


class Bench:
    """A mover in guest a and its target in guest b, both kept while they are measured."""

    def __init__(self, net, region=64 * MB, **conf):
        self.a, self.b = net.a, net.b
        self.daemons = net.daemons(**conf)
        self.target = self.b.start(f"rdma_bench target --socket {self.daemons[1].socket} --region {region}")
        descriptor = self.target.expect(r"descriptor (\w+)", 30)[1]
        self.mover = self.a.start(
            f"rdma_bench mover --socket {self.daemons[0].socket} --region {region} --descriptor {descriptor}")
        self.mover.expect("ready", 30)

    def run(self, op, block_bytes, n_blocks, transfers, window, timeout=120):
        """Seconds of all, and of the first one."""
        self.mover.send(f"{op} {block_bytes} {n_blocks} {transfers} {window}")
        found = self.mover.expect(r"seconds (\S+) first (\S+)", timeout)
        return float(found[1]), float(found[2])

    def mbps(self, op, block_bytes, n_blocks, transfers, window):
        return block_bytes * n_blocks * transfers / MB / self.run(op, block_bytes, n_blocks, transfers, window)[0]

    def counters(self):
        """Of the device's worker, and its ops."""
        workers = self.daemons[0].ctl("stats")["workers"]
        worker = [worker for worker in workers if worker["transport"] == "verbs"][0]
        return {"ops": worker["ops"], **worker["counters"]}


def activity(guest, pid):
    """CPU time that a daemon has used (on a busy machine a guest counts what the emulator waits for, too), and how often its threads woke up."""
    fields = guest.run(f"cat /proc/{pid}/stat").out.rsplit(")", 1)[1].split()
    lines = guest.run(f"cat /proc/{pid}/task/*/status").out.splitlines()
    return (int(fields[11]) + int(fields[12])) / 100, sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def rounded(value):
    return round(value, 3)


def large_blocks(net, rounds, size, n_transfers):
    """Bandwidth of transfers of 64 blocks. perftest at its best: one queue pair or four."""
    bench = Bench(net)
    n = size * 64 * n_transfers // size
    rates = {}
    for op, tool in (("write", "ib_write_bw"), ("read", "ib_read_bw")):
        bench.run(op, size, 64, 1, 1)
        best = {}
        for qps in (1, 4):
            best[f"q{qps}"] = []
        ours = {1: [], 2: []}
        for _ in range(rounds):
            for qps in (1, 4):
                best[f"q{qps}"].append(perftest(net.a, net.b, tool, size=size, n=n // qps, options=f"-q {qps}").average)
            for window in ours:
                ours[window].append(bench.mbps(op, size, 64, n_transfers, window))
        medians = {name: median(values) for name, values in best.items()}
        best_of = max(medians.values())
        for window, values in ours.items():
            rates[f"{op}_window{window}"] = median(values) / best_of
            net.figures(**{f"{op}_{size >> 10}k_x64_window{window}_MBps": rounded(median(values)),
                           f"{op}_window{window}_of_best": rounded(median(values) / best_of)})
        net.figures(**{f"{tool}_{name}_MBps": rounded(value) for name, value in medians.items()})
    return rates


def small_blocks(net, rounds):
    """Message rate of 4,096 scattered blocks of 4 KiB, and what was posted for them."""
    bench = Bench(net)
    bench.run("write", 4096, 4096, 1, 1)
    theirs, ours, windows = [], [], []
    before = bench.counters()
    for _ in range(rounds):
        theirs.append(perftest(net.a, net.b, "ib_write_bw", size=4096, n=6400, options="-l 64 -t 128").rate)
        ours.append(4096 / bench.run("write", 4096, 4096, 1, 1)[0])
        windows.append(4096 * 2 / bench.run("write", 4096, 4096, 2, 2)[0])
    after = bench.counters()
    per_op = {name: (after[name] - before[name]) / (after["ops"] - before["ops"]) for name in ("wrs", "doorbells", "signaled", "completions")}
    net.figures(ib_write_bw_l64_per_s=round(median(theirs)), kvxfer_per_s=round(median(ours)), kvxfer_window2_per_s=round(median(windows)),
                ratio=rounded(median(ours) / median(theirs)), ratio_window2=rounded(median(windows) / median(theirs)),
                **{f"{name}_per_op": round(value, 4) for name, value in per_op.items()})
    return median(windows) / median(theirs), per_op


@scenario(sets="long", limit_s=300)
def numbers_large(net):
    """64 KiB blocks, 64 a transfer: at least 0.95 of ib_write_bw and of ib_read_bw at their best."""
    rates = large_blocks(net, rounds=7, size=65536, n_transfers=4)
    for op in ("write", "read"):
        check(rates[f"{op}_window2"] >= 0.95, f"{op}: {rates[f'{op}_window2']:.3f} of perftest")


@scenario(sets="long", limit_s=300)
def numbers_small(net):
    """4 KiB blocks, 4,096 a transfer: the message rate of ib_write_bw -l 64 on one queue pair."""
    ratio, per_op = small_blocks(net, rounds=7)
    check(per_op["signaled"] <= 1 / 32, f"{per_op['signaled']:.4f} signaled completions per op")
    check(ratio >= 1, f"{ratio:.3f} of ib_write_bw -l 64")


@scenario(sets="short long", limit_s=60)
def idle(net):
    """A daemon with nothing to do sleeps, its lane stays up, and the first transfer afterwards sets nothing up."""
    bench = Bench(net, region=8 * MB)
    warm = median(bench.run("write", 4096, 1, 1, 1)[1] for _ in range(15))
    made = bench.counters()["eps_made"]
    lane = bench.daemons[0].ctl("lanes")["lanes"][0]
    pids = [daemon.ctl("status")["pid"] for daemon in bench.daemons]
    before = [activity(daemon.guest, pid) for daemon, pid in zip(bench.daemons, pids)]
    net.a.run("sleep 6")
    after = [activity(daemon.guest, pid) for daemon, pid in zip(bench.daemons, pids)]
    used, woken = ([now[i] - then[i] for now, then in zip(after, before)] for i in (0, 1))
    first = bench.run("write", 4096, 1, 1, 1)[1]
    now = bench.daemons[0].ctl("lanes")["lanes"][0]
    net.figures(warm_ms=rounded(warm * 1e3), first_after_idle_ms=rounded(first * 1e3), cpu_of_6_s=[rounded(value) for value in used],
                wakeups_in_6_s=woken)
    check(bench.counters()["eps_made"] == made, "no endpoint was made for the first transfer after idle")
    check((now["generation"], now["state"]) == (lane["generation"], "up"), f"the same lane: {lane} {now}")
    check(max(woken) < 200, f"idle daemons sleep: woken {woken} times in 6 s")
    check(max(used) < 3, f"idle daemons do not spin: {used} s of CPU time in 6 s")
