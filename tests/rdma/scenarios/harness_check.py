"""The guests themselves: devices, wires, faults, and that the harness sees what goes wrong. Without these the other scenarios
prove nothing."""
from harness.engines import CHANNEL_NIC, Drive, Serve, brief, promises, show
from harness.machine import Failed
from harness.perftest import perftest
from harness.scenario import check, scenario


def answers(a, b, nic, within_s=1):
    return a.run(f"ping -c 1 -W {within_s} {b.ip(nic)} >/dev/null", check=False).rc == 0


def reaches(a, b, nic):
    """Whether b can be reached at all: the first ping may be late, or lost while a looks for b's address."""
    return any(answers(a, b, nic, 2) for _ in range(3))


def tcp_reaches(a, b, nic):
    """Whether a line gets from a to b over TCP."""
    server = b.start(f"nc -l -p 9000")
    b.run("i=0; until netstat -tln | grep -q :9000; do i=$((i+1)); [ $i -lt 50 ] || exit 1; sleep 0.1; done")
    a.run(f"echo word | timeout 3 nc -w 2 {b.ip(nic)} 9000", check=False)
    try:
        server.expect("word", 2)
        return True
    except Failed:
        return False
    finally:
        server.kill()


@scenario(limit_s=60)
def guests_and_wires(net):
    """Each guest has its device with a 4 KiB MTU, a second rail on demand, and ib_write_bw runs over both."""
    a, b = net.a, net.b
    for guest in net.guests:
        guest.add_rail(1)
        for rail in (0, 1):
            info = guest.run(["ibv_devinfo", "-d", guest.device(rail)]).out
            check("PORT_ACTIVE" in info and "4096 (5)" in info, f"{guest.name} rail {rail}: active, MTU 4096: {info}")
    for rail in (0, 1):
        done = perftest(a, b, "ib_write_bw", rail=rail, size=65536, n=200)
        net.figures(**{f"rail{rail}_MBps": done.average})


@scenario(sets="long", limit_s=90)
def faults_are_faults(net):
    """Each fault cuts what it says, and nothing else."""
    a, b = net.a, net.b
    check(tcp_reaches(a, b, 0) and reaches(a, b, 1), "all is well at first")
    b.block("tcp", "in")
    check(not tcp_reaches(a, b, 0), "TCP is cut")
    check(reaches(a, b, 1), "and nothing else")
    b.unblock()
    a.block("roce", "out")
    check(tcp_reaches(a, b, 0), "TCP is not cut by a partition of RoCE")
    check(perftest(a, b, "ib_write_bw", rail=0, size=4096, n=5, check=False, timeout=6) is None, "RoCE is cut")
    a.unblock()
    a.link(1, False)
    check(not answers(a, b, 1) and reaches(a, b, 0), "a link that is down is down alone")
    a.link(1, True)
    check(reaches(a, b, 1), "and comes back")
    a.netem("loss 100%", 1)
    check(not answers(a, b, 1), "netem loses")
    net.heal()
    check(reaches(a, b, 1) and perftest(a, b, "ib_write_bw", rail=0, size=4096, n=5), "healed")


@scenario(limit_s=90)
def what_goes_wrong_is_seen(net):
    """Exit codes, time limits, kernel trouble on a console, and the loss of a guest all come through."""
    a, b = net.a, net.b
    done = a.run("echo out; echo err >&2; exit 7", check=False)
    check((done.rc, done.out, done.err) == (7, "out\n", "err\n"), f"exit code and output: {done.rc} {done.out!r} {done.err!r}")
    try:
        a.run("sleep 30", timeout=1)
        check(False, "a command over its time limit fails")
    except Failed as failed:
        check("not done in 1 s" in str(failed), str(failed))
    many = a.run("head -c 3000000 /dev/zero | tr '\\0' x").out
    check(len(many) == 3000000, f"{len(many)} of 3000000 bytes of output")
    echo = a.start("while read -r line; do echo got $line; done; exit 3")
    echo.send("one")
    echo.expect("got one", 5)
    echo.close_input()
    check(echo.wait(5).rc == 3, "the end of the input is seen")
    a.run("echo 'BUG: not a real one' >/dev/kmsg")
    a.run("true")
    check(any("not a real one" in line for line in net.trouble()), "trouble on a console is seen")
    waiting = b.start("sleep 60")
    b.power_off()
    check(waiting.wait(5).rc == -1, "a command ends with its guest")
    b.boot()
    check(reaches(a, b, 0) and reaches(a, b, 1), "a guest that was booted again is reached")


@scenario(sets="long", limit_s=120)
def engines_talk_late(net):
    """What the engines tell each other is 1.5 s late, and imports are made anew meanwhile: what is right is not counted as wrong."""
    a, b = net.a, net.b
    da, db = net.daemons()
    serve = Serve(b, db, zone="1M")
    drive = Drive(a, da, serve, window=32, ops=8, sizes="4K:16K", max_bytes="128K", big_pct=0, big="64K", read_pct=20, zone="1M").ready()
    a.netem("delay 1500ms", CHANNEL_NIC)
    for _ in range(3):
        a.run("sleep 3")
        drive.tell("reimport")
        drive.process.expect("event=imported", 20)
    a.run("sleep 3")
    a.netem(None, CHANNEL_NIC)
    figures = drive.stop()
    show(net, figures)
    net.figures(imports=figures["imports"])
    promises(figures, all_ok=True)
    check(figures["imports"] == 4, f"each import was made anew: {brief(figures)}")
