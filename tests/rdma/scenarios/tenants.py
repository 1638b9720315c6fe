"""Two tenants on the same two nodes: each has lanes and protection domains of its own, and what one knows is of no use to the other."""
from harness.engines import CHANNEL_PORT, Drive, Serve, brief, lanes, promises
from harness.scenario import check, scenario
from scenarios.refuse import regions

NAMES = ("red", "blue")


class Door:
    """A daemon as one tenant sees it: its socket."""

    def __init__(self, daemon, tenant):
        self.socket = f"{daemon.folder}/{tenant}.sock"


def start(net):
    folder = "/run/kvx/kvxferd"
    return net.daemons(sets={"daemon.tenants": " ".join(f"{name}={folder}/{name}.sock" for name in NAMES)})


@scenario(sets="long", limit_s=150)
def tenants(net):
    """Both at work at the same time; a descriptor of the other tenant's is refused, keys are of other protection domains."""
    a, b = net.a, net.b
    da, db = start(net)
    serves = {name: Serve(b, Door(db, name), port=CHANNEL_PORT + i, name=name) for i, name in enumerate(NAMES)}
    drives = {name: Drive(a, Door(da, name), serves[name], name=name, count=150, ops=8, sizes="4K:64K", big_pct=0) for name in NAMES}
    for name in NAMES:
        figures = drives[name].wait(90)
        promises(figures, all_ok=True)
        net.figures(**{name: {key: figures[key] for key in ("accepted", "completed", "lost", "misplaced", "late")}})
    rows = [row for row in lanes(da) if row["tenant"] in NAMES]
    check(sorted(row["tenant"] for row in rows) == sorted(NAMES), f"each has a lane of its own: {rows}")
    check(len({row["generation"] for row in rows}) == len(NAMES), f"with a generation of its own: {rows}")
    domains = {row["pdn"] for row in regions(b)}
    check(len(domains) == len(NAMES), f"each tenant's memory is in a protection domain of its own: {regions(b)}")
    stranger = Drive(a, Door(da, "blue"), serves["red"], name="stranger", seconds=3)
    figures = stranger.wait(60)
    net.figures(stranger_refusals=figures["import_failures"], why=figures["import_error"])
    check(figures["imports"] == 0 and figures["import_failures"] > 0, f"the other tenant's descriptor is refused: {brief(figures)}")
    plain = Drive(a, da, serves["red"], name="plain", seconds=3).wait(60)
    check(plain["imports"] == 0, f"also for the default tenant: {brief(plain)}")
