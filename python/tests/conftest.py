"""Real daemons for the tests, and engines on them. KVXFERD names the daemon; else one is looked for
in build folders beside the repository."""

import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

import kvxfer

pytest.register_assert_rewrite("pd_ranks")

START_S = 30.0
PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = 41, 42


def find_daemon():
    path = os.environ.get("KVXFERD")
    if path:
        return path
    root = pathlib.Path(__file__).resolve().parents[2]
    for found in sorted(root.glob("build*/daemon/kvxferd")):
        return str(found)
    pytest.exit("no kvxferd: set KVXFERD to the daemon to test against", 2)


class Node:
    """A daemon with a socket of its own."""

    def __init__(self, *sets):
        self.dir = tempfile.mkdtemp(prefix="kvxfer-py-")
        self.socket = f"{self.dir}/kvxferd.sock"
        self.sets = sets
        self.process = None
        self.start()

    def start(self):
        args = [find_daemon(), "--socket", self.socket, "--listen", "127.0.0.1:0",
                "--set", f"daemon.node_id_file={self.dir}/node-id"]
        for one in self.sets:
            args += ["--set", one]
        with open(f"{self.dir}/log", "ab") as log:
            self.process = subprocess.Popen(args, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while True:
            try:
                self.client("probe").close()
                return
            except kvxfer.KvxferError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(self.log()) from None
                time.sleep(0.01)

    def client(self, name="test", **options):
        options.setdefault("timeout", 30)
        return kvxfer.Client(self.socket, name=name, **options)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def log(self):
        return pathlib.Path(f"{self.dir}/log").read_text()

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            status = self.process.wait(30)
            assert status == 0, self.log()
        shutil.rmtree(self.dir)


def anonymous_bytes(pid):
    """Memory of a process that is neither shared nor a file's, counted page by page: the sums in
    /proc/PID/status lack up to some MiB, as each CPU adds its part late."""
    fields = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return int(fields[fields.index("Anonymous:") + 1]) * 1024


@pytest.fixture
def small_pages():
    """No huge pages, here and in the daemons that are started: the kernel may join small ones at
    any time, and 2 MiB count as used where a few KiB are."""
    libc = ctypes.CDLL(None)

    def prctl(what, value=0):
        return libc.prctl(what, *map(ctypes.c_ulong, (value, 0, 0, 0)))

    before = prctl(PR_GET_THP_DISABLE)
    assert prctl(PR_SET_THP_DISABLE, 1) == 0
    yield
    prctl(PR_SET_THP_DISABLE, before)


@pytest.fixture(scope="session")
def shared_node():
    node = Node()
    yield node
    node.stop()


@pytest.fixture
def node():
    """A daemon that the test may kill."""
    node = Node()
    yield node
    node.stop()


class Pair:
    """A prefill and a decode client, with regions of one layout; each imports the other's."""

    def __init__(self, node, n_planes=4, n_blocks=32, block_bytes=4096, decode_node=None):
        planes = [kvxfer.Plane(f"p{i}", i * n_blocks * block_bytes, block_bytes, block_bytes,
                               n_blocks) for i in range(n_planes)]
        self.layout = kvxfer.Layout(planes)
        self.shape = (n_planes, n_blocks, block_bytes)
        self.clients, self.regions, self.arrays = [], [], []
        for name, where in (("prefill", node), ("decode", decode_node or node)):
            client = where.client(name)
            region = client.alloc(n_planes * n_blocks * block_bytes, layout=self.layout,
                                  access="rw", name=name)
            self.clients.append(client)
            self.regions.append(region)
            self.arrays.append(region.numpy("uint8", self.shape))
        self.prefill, self.decode = self.clients
        self.src, self.dst = self.arrays
        self.to_decode = self.prefill.open_import(self.regions[1].export())
        self.to_prefill = self.decode.open_import(self.regions[0].export())

    def write(self, what=None, **options):
        return self.prefill.write(self.regions[0], self.to_decode, what, **options)

    def read(self, what=None, **options):
        return self.decode.read(self.regions[1], self.to_prefill, what, **options)

    def close(self):
        for client in self.clients:
            client.close()


@pytest.fixture
def pair(shared_node):
    pair = Pair(shared_node)
    yield pair
    pair.close()


@pytest.fixture(scope="module")
def other_node():
    node = Node()
    yield node
    node.stop()


@pytest.fixture(params=["one node", "two nodes"])
def nodes(request, shared_node, other_node):
    return (shared_node, shared_node if request.param == "one node" else other_node)


@pytest.fixture
def engines(nodes):
    """Makes pairs of engines of kvxfer.pd and closes them."""
    from pd_ranks import Engine

    made = []

    def make(src=None, dst=None, **both):
        pair = []
        for node, name, own in ((nodes[0], "prefill", src), (nodes[1], "decode", dst)):
            pair.append(Engine(node, name, **both, **(own or {})))
            made.append(pair[-1])
        return pair

    yield make
    for engine in made:
        engine.close()
