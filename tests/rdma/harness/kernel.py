"""The guests' kernel: the Debian package that linux-image-amd64 stands for, fetched with apt-get and unpacked, not installed."""
import glob
import lzma
import os
import re
import shutil
import subprocess
import tempfile

META_PACKAGE = "linux-image-amd64"
# rdma_rxe asks for crc32 by name at run time: nothing depends on it. The table-driven one: instructions for it are slow here.
MODULES = [
    "virtio_pci", "virtio_net", "virtio_console", "crc32_generic", "crc32c_generic",
    "ib_uverbs", "rdma_ucm", "rdma_rxe", "sch_netem", "sch_ingress", "cls_flower", "cls_u32", "cls_matchall", "act_gact",
]


class Missing(Exception):
    """What the tests need is not on this machine."""


class Kernel:
    """`image`: the kernel's path; `modules`: paths in the order in which they are loaded; `version`."""

    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, "order"), encoding="utf-8") as order:
            names = order.read().split()
        self.version = names[0]
        self.image = os.path.join(folder, "kernel")
        self.modules = [os.path.join(folder, "modules", name) for name in names[1:]]


def wanted():
    """What a cache must have been made for."""
    return "2 " + " ".join(MODULES)


def get(cache):
    """The kernel in the cache folder, put there first when it is not."""
    folder = os.path.join(cache, "kernel")
    stamp = os.path.join(folder, "made-for")
    if os.path.exists(stamp):
        with open(stamp, encoding="utf-8") as text:
            if text.read() == wanted():
                return Kernel(folder)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(cache, exist_ok=True)
    package = fetch(cache)
    with tempfile.TemporaryDirectory(dir=cache) as tree:
        subprocess.run(["dpkg", "-x", package, tree], check=True)
        keep(tree, folder)
    with open(stamp, "w", encoding="utf-8") as text:
        text.write(wanted())
    return Kernel(folder)


def fetch(cache):
    """The path of the kernel's .deb, of this version."""
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is missing: the guests' kernel is a Debian package")
    shown = subprocess.run(["apt-cache", "depends", META_PACKAGE], capture_output=True, text=True, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
    if found is None:
        raise Missing(f"apt knows no {META_PACKAGE} (apt-get update?)")
    name = found[1]
    there = glob.glob(os.path.join(cache, name + "_*.deb"))
    if there:
        return there[0]
    for old in glob.glob(os.path.join(cache, "linux-image-*.deb")):
        os.unlink(old)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        done = subprocess.run(["apt-get", "download", name], cwd=folder, capture_output=True, text=True, check=False)
        got = glob.glob(os.path.join(folder, "*.deb"))
        if done.returncode != 0 or not got:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Missing(f"apt-get download {name} failed: {reason}")
        path = os.path.join(cache, os.path.basename(got[0]))
        os.replace(got[0], path)
    return path


def keep(tree, folder):
    """Copies the image and the modules of MODULES, with what these depend on, out of the unpacked package."""
    image = glob.glob(os.path.join(tree, "boot", "vmlinuz-*"))[0]
    version = os.path.basename(image)[len("vmlinuz-"):]
    paths = {}
    for path in glob.glob(os.path.join(tree, "**", "*.ko*"), recursive=True):
        paths[module_name(path)] = path
    os.makedirs(os.path.join(folder, "modules"))
    with open(os.path.join(folder, "kernel"), "wb") as out:
        out.write(unpacked(image))
    order = []
    for name in MODULES:
        add_module(name, paths, order)
    for name in order:
        with open(os.path.join(folder, "modules", name + ".ko"), "wb") as out:
            out.write(module_data(paths[name]))
    with open(os.path.join(folder, "order"), "w", encoding="utf-8") as out:
        out.write("\n".join([version] + [name + ".ko" for name in order]) + "\n")


def unpacked(path):
    """A kernel that need not unpack itself starts three seconds sooner under emulation. One that is packed otherwise stays so."""
    with open(path, "rb") as image:
        data = image.read()
    start = data.find(b"\xfd7zXZ\0")
    if start < 0:
        return data
    plain = lzma.LZMADecompressor().decompress(data[start:])
    return plain if plain.startswith(b"\x7fELF") else data


def module_name(path):
    return re.sub(r"\.ko(\.xz)?$", "", os.path.basename(path)).replace("-", "_")


def module_data(path):
    if path.endswith(".xz"):
        with lzma.open(path) as packed:
            return packed.read()
    with open(path, "rb") as plain:
        return plain.read()


def add_module(name, paths, order):
    """What a module depends on is a string in it: no depmod needed. What is not there is built into the kernel, or init.sh
    and the boot say what is missing."""
    if name in order or name not in paths:
        return
    found = re.search(rb"\0depends=([^\0]*)\0", module_data(paths[name]))
    for other in found[1].decode().split(",") if found else []:
        if other:
            add_module(other.replace("-", "_"), paths, order)
    order.append(name)
