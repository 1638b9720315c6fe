"""What must not be possible: ops outside of a region, rights that were not given, descriptors that were made up, and, past the daemons,
the device itself with keys and addresses that belong to a kvxferd."""
import json

from harness.engines import CHANNEL_NIC, Drive, Serve, brief, promises, show
from harness.scenario import check, scenario

ATTACK_PORT = 9901


def resources(guest, what):
    """Rows of `rdma resource show` of one kind, those of kvxferd."""
    rows = json.loads(guest.run(f"rdma -j -dd resource show {what}").out or "[]")
    return [row for row in rows if row.get("comm", "").startswith("kvx")]  # its threads: "kvx-rxe0:1-reg"


def rkey(row):
    return int(row["rkey"], 16)


def regions(guest):
    """The daemon's registrations of engines' memory; its own are small."""
    return [row for row in resources(guest, "mr") if row["mrlen"] >= 1 << 20]


def oob(net, serve, daemon, access):
    done = net.a.run(["rdma_engine", "oob", "--socket", daemon.socket, "--connect", serve.address, "--access", str(access)], timeout=60,
                     check=False)
    figures = done.figures()
    check(figures["good"] == 1 and figures["not_refused"] == 0, f"all is refused, nothing moved: {brief(figures)} {done.out[-600:]}")
    return figures


@scenario(sets="short long", limit_s=120)
def out_of_range(net):
    """Ops, blocks and planes outside of either region, READ and WRITE; a region that may only be read; changed descriptors."""
    da, db = net.daemons()
    both = oob(net, Serve(net.b, db), da, 3)
    read = oob(net, Serve(net.b, db, port=9910, name="readonly", access="read"), da, 1)
    net.figures(tried=both["tried"] + read["tried"], refused=both["refused"] + read["refused"], not_refused=0,
                zone_bytes=both["serve_zone_bytes"] + read["serve_zone_bytes"])


@scenario(sets="long", limit_s=150)
def wrong_keys(net):
    """Someone with queue pairs of his own on both nodes, who knows the keys of the daemon's regions: the device refuses him."""
    a, b = net.a, net.b
    da, db = net.daemons()
    serve = Serve(b, db)
    drive = Drive(a, da, serve, ops=8, sizes="4K:64K", big_pct=0, gap_ms=20).ready()
    keys = [rkey(row) for row in resources(b, "mr")]
    check(len(keys) >= 2, f"the daemon's keys are known: {b.run('rdma -j -dd resource show mr').out}")
    victim = b.start(["rdma_raw", "victim", "--device", b.device(), "--listen", f"{b.ip(CHANNEL_NIC)}:{ATTACK_PORT}"])
    victim.expect("event=ready", 20)
    done = a.run(["rdma_raw", "attack", "--device", a.device(), "--connect", f"{b.ip(CHANNEL_NIC)}:{ATTACK_PORT}",
                  "--keys", ",".join(f"0x{key:x}" for key in keys), "--at", "0,4096,65536,67108864",
                  "--spray", "60"], timeout=110, check=False)
    attack = done.figures()
    net.figures(**{key: attack[key] for key in ("tried", "refused", "succeeded", "unclear", "control_works")}, keys=len(keys))
    check(attack["control_works"] == 1, f"the attack works where it may: {attack}")
    check(attack["succeeded"] == 0, f"no attempt succeeds: {attack} {done.out[-600:]}")
    figures = drive.stop()
    show(net, figures)
    promises(figures, all_ok=True)


def forge(net, **values):
    words = ["rdma_raw", "forge", "--from", net.a.ip(1), "--to", net.b.ip(1)]
    for key, value in values.items():
        words += ["--" + key, str(value)]
    return net.a.run(words).figures()["sent"]


@scenario(sets="long", limit_s=150)
def forged_packets(net):
    """Packets made by hand from the peer's address, most of it guessed or with a wrong key: nothing lands, transfers go on. One that
    knows everything, the next packet number too, lands: the packets are good ones."""
    a, b = net.a, net.b
    da, db = net.daemons()
    serve = Serve(b, db, watch_ms=300)
    drive = Drive(a, da, serve, ops=8, sizes="4K:64K", big_pct=0, count=60).ready()
    figures = drive.wait(60)
    promises(figures, all_ok=True)
    keys = [rkey(row) for row in regions(b)]
    pairs = [row for row in resources(b, "qp") if row["type"] == "RC"]
    check(keys and pairs, f"queue pairs and keys are known: {keys} {pairs}")
    key, pair = keys[0], pairs[0]
    sent = forge(net, count=2000, rkey=f"0x{key:x}")
    sent += forge(net, count=2000, qpn=pair["lqpn"])
    sent += forge(net, count=2000)
    sent += forge(net, count=1, qpn=pair["lqpn"], psn=pair["rq-psn"], rkey=f"0x{key ^ 0x100:x}")
    quiet = Serve(b, db, port=9910, name="quiet")
    probe = Drive(a, da, serve, ops=8, sizes="4K:64K", big_pct=0, count=60)
    figures = probe.wait(60)
    show(net, figures)
    promises(figures)
    quiet_figures = quiet.stop()
    check(quiet_figures["zone_bytes"] == 0 and quiet_figures["guard_bytes"] == 0, f"nothing landed elsewhere: {quiet_figures}")
    net.figures(forged=sent)
    pairs = [row for row in resources(b, "qp") if row["type"] == "RC"]
    lands(net, serve, pairs, key)


def lands(net, serve, pairs, key):
    """The last word to a lane: afterwards its packet numbers are off."""
    for pair in pairs:
        forge(net, count=1, qpn=pair["lqpn"], psn=pair["rq-psn"], rkey=f"0x{key:x}", at=8192)
    net.a.run("sleep 1")
    last = Drive(net.a, net.a.daemons[0], serve, count=0, seconds=1)
    seen = last.wait(60)
    check(seen["serve_zone_bytes"] == 64, f"the packet that knows everything lands, and is seen: {brief(seen)}")
