"""Which verb is a fence on this kernel and device, shown without kvxfer: what the daemon's fence rests on, and that the tests see
late bytes where there is none."""
from harness.scenario import check, scenario


def late(guest, fence, trials):
    done = guest.run(f"rdma_raw late --device {guest.device()} --fence {fence} --trials {trials}", timeout=30 + trials, check=False)
    figures = done.figures()
    check(figures["hits"] > 0, f"{fence}: writes were running: {figures}")
    return figures


def controls(net, trials):
    none = late(net.a, "none", 5)
    check(none["late_trials"] > 0, f"without a fence late bytes are seen: {none}")
    net.figures(none_late=f"{none['late_trials']}/{none['trials']}")
    for fence in ("destroy", "dereg"):
        figures = late(net.a, fence, trials)
        net.figures(**{fence + "_late": f"{figures['late_trials']}/{figures['trials']}", fence + "_max_ms": figures["fence_max_ms"]})
        check(figures["late_bytes"] == 0, f"{fence}: no byte is late: {figures}")


@scenario(sets="short", limit_s=60)
def raw_fence(net):
    """destroy_qp and dereg_mr stop inbound writes, nothing shows late bytes: 5 and 20 trials each."""
    controls(net, 20)


@scenario(sets="long", limit_s=180)
def raw_fence_long(net):
    """As raw_fence, with 100 trials each."""
    controls(net, 100)
