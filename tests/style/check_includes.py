#!/usr/bin/env python3
"""Who may include whom: the layers of the daemon, and the one home of each third-party header.

usage: check_includes.py ROOT. Prints each violation as FILE:LINE: reason; exit status 1 when there is one.
"""
import os
import re
import sys

# Leftmost first: a layer includes itself and what is to its left.
LAYERS = ["base", "mem", "transport", "worker", "xfer", "config", "control", "daemon"]
# Files in daemon/ itself: config* is a layer, main and daemon are right of everything.
TOP_LAYER = "daemon"
# Tools stand on libclient; these are the exceptions: the file checked without a daemon, the copy loops whose
# limit kvxfer-bench measures, the child process that libraries are tried in, and what doctor and topology read of PCI and RDMA devices without a daemon.
TOOLS_MAY = {"daemon/base/child.h", "daemon/base/pci.h", "daemon/config.h", "daemon/transport/copy_kernels.h",
             "daemon/transport/verbs/verbs_abi.h", "daemon/transport/verbs/verbs_gid.h",
             "daemon/transport/verbs/verbs_sysfs.h"}
# Who outside of the daemon may include what of it.
LEAVES = {"proto": {"proto"}, "gpu": {"proto", "gpu"}, "libclient": {"proto", "gpu", "libclient"}}

# First match wins: header pattern, paths (prefixes) that may include it, why.
HOMES = [
    (r"uv\.h$", ["daemon/base/timer", "daemon/xfer/peer", "daemon/control/", "daemon/daemon", "daemon/main",
                 "tests/"], "libuv"),
    (r"rdma/rdma_|infiniband/", ["daemon/transport/verbs/", "tools/", "tests/"], "ibverbs and rdmacm"),
    (r"rdma/", ["daemon/transport/fabric/", "tools/", "tests/"], "libfabric"),
    (r"(hip/|cuda)", ["gpu/"], "GPU runtimes"),
    (r"(protobuf-c/|\.pb-c\.h$)", ["daemon/control/", "daemon/xfer/peer", "libclient/", "tests/"], "protobuf"),
    (r"json-c/", ["daemon/control/", "tools/", "tests/"], "json-c"),
    (r"ini\.h$", ["daemon/config"], "inih"),
    (r"openssl/", ["daemon/xfer/peer_tls", "tests/"], "OpenSSL"),
    (r"systemd/", ["daemon/daemon", "daemon/main", "daemon/service"], "libsystemd"),
    (r"criterion/", ["tests/"], "Criterion"),
]

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def sources(root):
    for top in ("proto", "gpu", "libclient", "daemon", "tools", "tests"):
        for folder, _, names in sorted(os.walk(os.path.join(root, top))):
            for name in sorted(names):
                if name.endswith((".c", ".h", ".cc", ".cpp")):
                    yield os.path.relpath(os.path.join(folder, name), root)


def layer_of(path):
    """The layer of a file in daemon/, else its top folder."""
    parts = path.split("/")
    if parts[0] != "daemon":
        return parts[0]
    if len(parts) > 2:
        return parts[1]
    return "config" if parts[1].startswith("config") else TOP_LAYER


def resolve(root, path, name):
    """The file of ours that an include names, relative to root; None for others."""
    for base in (os.path.dirname(path), "", "daemon", "libclient/include", "tests/support", "tools"):
        candidate = os.path.normpath(os.path.join(base, name))
        if os.path.isfile(os.path.join(root, candidate)):
            return candidate
    return None


def check_layer(path, target):
    """The reason why path may not include target, or None."""
    here, there = layer_of(path), layer_of(target)
    if path.startswith("tests/"):
        return None
    if target.startswith("tests/"):
        return "product code must not include test code"
    if here in LEAVES:
        return None if there in LEAVES[here] else f"{here} must not include {target}"
    if here == "tools":
        allowed = there in ("tools", "libclient", "proto", "gpu") or target in TOOLS_MAY
        return None if allowed else f"tools must not include {target}"
    if there in ("proto", "gpu"):
        return None
    if here not in LAYERS:
        return f"daemon/{here} is not one of the layers {' <- '.join(LAYERS)}"
    if there not in LAYERS:
        return f"{here} must not include {target}"
    if LAYERS.index(there) > LAYERS.index(here):
        return f"{here} must not include {target}: {there} is to its right"
    return check_backend(path, target)


def check_backend(path, target):
    """Backends are strangers to one another, and only the registry knows them."""
    here, there = path.split("/"), target.split("/")
    if there[:2] != ["daemon", "transport"] or len(there) < 4:
        return None
    if here[:3] == there[:3] or path == "daemon/transport/registry.c":
        return None
    return f"only the registry may include the backend {target}"


def check_home(path, name):
    for pattern, homes, what in HOMES:
        if not re.search(pattern, name) or os.path.basename(path) == os.path.basename(name):
            continue
        if not any(path.startswith(home) for home in homes):
            return f"{what} ({name}) belongs to {', '.join(homes)}"
        return None
    return None


def check_first(root, path, includes):
    """foo.c includes foo.h first, or the private header of its folder, which includes that."""
    if not path.endswith(".c") or path.startswith("tests/"):
        return None
    own = path[:-2] + ".h"
    if not os.path.isfile(os.path.join(root, own)) or not includes:
        return None
    line, _, name = includes[0]
    if resolve(root, path, name) == own or name.endswith("_priv.h"):
        return None
    return line, f"{os.path.basename(own)} must be included first"


def check_file(root, path):
    problems, includes = [], []
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as source:
        for number, text in enumerate(source, 1):
            match = INCLUDE.match(text)
            if match:
                includes.append((number, match.group(1), match.group(2)))
    for number, quote, name in includes:
        target = resolve(root, path, name) if quote == '"' else None
        reason = check_layer(path, target) if target else None
        reason = reason or check_home(path, name)
        if reason:
            problems.append((number, reason))
    first = check_first(root, path, includes)
    if first:
        problems.append(first)
    return problems


def main():
    root = sys.argv[1]
    n_files = n_problems = 0
    for path in sources(root):
        n_files += 1
        for number, reason in check_file(root, path):
            print(f"{path}:{number}: {reason}")
            n_problems += 1
    print(f"{n_files} files, {n_problems} wrong includes")
    if n_files < 20:
        print(f"too few files under {root}: is it the root of the tree?")
        return 1
    return 1 if n_problems else 0


if __name__ == "__main__":
    sys.exit(main())
