"""The initramfs of the guests: busybox, kernel modules, the RDMA tools of this machine, and the programs under test."""
import glob
import os
import re
import shutil
import subprocess

from harness.cpio import Archive
from harness.kernel import Missing

HERE = os.path.dirname(os.path.abspath(__file__))
GUEST = os.path.join(os.path.dirname(HERE), "guest")
# program: the Debian package it is in.
TOOLS = {
    "ip": "iproute2", "tc": "iproute2", "rdma": "iproute2", "ibv_devinfo": "ibverbs-utils",
    "ib_write_bw": "perftest", "ib_read_bw": "perftest", "ib_write_lat": "perftest", "ib_read_lat": "perftest",
}
# Loaded at run time, so that no ldd shows it: pthread_exit needs it.
LATE_LIBRARIES = ["libgcc_s.so.1"]


def find_tool(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    return os.path.realpath(path) if path else None


def busybox():
    """A busybox that is linked statically."""
    path = find_tool("busybox")
    if path is None:
        raise Missing("busybox is missing (busybox-static)")
    if "not a dynamic executable" not in libraries_text(path):
        raise Missing(f"{path} is not static (busybox-static)")
    return path


def libraries_text(path):
    done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def libraries(path):
    """(name in the guest, path here) of all libraries of a program, the loader too."""
    text = libraries_text(path)
    if "not found" in text:
        raise Missing(f"{path}: {re.search(r'.*not found.*', text)[0].strip()}")
    for name, target in re.findall(r"(\S+) => (/\S+)", text):
        yield name, target
    for loader in re.findall(r"^\s*(/\S+) \(0x", text, re.M):
        yield loader, loader


class Image:
    def __init__(self, path, kernel, programs):
        """programs: paths of what this build made; they go to /usr/bin."""
        self.archive = Archive(path + ".new")
        self.kernel = kernel
        self.base()
        self.modules()
        for name, package in TOOLS.items():
            tool = find_tool(name)
            if tool is None:
                raise Missing(f"{name} is missing ({package})")
            self.program(name, tool)
        for program in programs:
            self.program(os.path.basename(program), program)
        self.verbs()
        self.archive.close()
        os.replace(path + ".new", path)

    def base(self):
        archive, box = self.archive, busybox()
        for name in ("dev", "proc", "sys", "run", "tmp", "root", "lib", "etc"):
            archive.directory(name)
        archive.device("dev/console", 5, 1)
        archive.copy("bin/busybox", box, 0o755)
        # Not busybox's: that one runs its own applets, a small "ip" and "tc" among them, whatever PATH says.
        archive.copy("bin/sh", find_tool("dash") or find_tool("sh"), 0o755)
        self.libraries_of(find_tool("dash") or find_tool("sh"))
        applets = subprocess.run([box, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if applet not in TOOLS and applet not in ("busybox", "sh"):
                archive.link("bin/" + applet, "busybox")
        archive.copy("init", os.path.join(GUEST, "init.sh"), 0o755)
        archive.data("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
        archive.data("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        archive.data("etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n")
        archive.data("etc/hosts", b"127.0.0.1 localhost\n10.77.0.1 a\n10.77.0.2 b\n")

    def modules(self):
        names = [os.path.basename(path) for path in self.kernel.modules]
        for path in self.kernel.modules:
            self.archive.copy("modules/" + os.path.basename(path), path)
        self.archive.data("modules/order", ("\n".join(names) + "\n").encode())

    def program(self, name, path):
        self.archive.copy("usr/bin/" + name, path, 0o755)
        self.libraries_of(path)

    def libraries_of(self, path):
        for name, target in libraries(path):
            place = name if name.startswith("/") else "lib/" + name
            self.archive.copy(place, target, 0o755)

    def verbs(self):
        """The provider of the soft device, under the path that libibverbs has built in."""
        providers = glob.glob("/usr/lib/*/libibverbs/librxe-rdmav*.so") + glob.glob("/usr/lib*/libibverbs/librxe-rdmav*.so")
        driver = "/etc/libibverbs.d/rxe.driver"
        if not providers or not os.path.exists(driver):
            raise Missing("the rxe provider of libibverbs is missing (ibverbs-providers)")
        for provider in providers:
            self.archive.copy(provider, provider, 0o755)
            self.libraries_of(provider)
        self.archive.copy(driver, driver)
        for name in LATE_LIBRARIES:
            for path in glob.glob(f"/lib/*/{name}") + glob.glob(f"/usr/lib/*/{name}"):
                self.archive.copy("lib/" + name, path, 0o755)
