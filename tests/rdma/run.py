#!/usr/bin/env python3
"""Scenarios on real verbs, in QEMU guests: see README.md.

usage: run.py [--list | --shell] [SCENARIO...]. Without names: all of the set that KVX_RDMA names (short or long). Prints TAP; the
exit code is 1 when one failed. KVX_RDMA_PROGRAMS (paths, ':' between) are the programs that go into the guests.
"""
import importlib.util
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

from harness.runner import Runner  # noqa: E402
from harness.scenario import SCENARIOS  # noqa: E402
from harness.shell import shell  # noqa: E402


def load_scenarios():
    folder = os.path.join(HERE, "scenarios")
    for name in sorted(os.listdir(folder)):
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location("scenarios." + name[:-3], os.path.join(folder, name))
            spec.loader.exec_module(importlib.util.module_from_spec(spec))


def chosen(names):
    which = os.environ.get("KVX_RDMA", "short")
    if which not in ("short", "long"):
        sys.exit(f"KVX_RDMA is {which}: must be short or long")
    if not names:
        return [function for function in SCENARIOS if which in function.sets]
    known = {function.__name__: function for function in SCENARIOS}
    for name in names:
        if name not in known:
            sys.exit(f"no scenario {name}: {' '.join(known)}")
    return [known[name] for name in names]


def main(words):
    load_scenarios()
    if "--list" in words:
        for function in SCENARIOS:
            about = (function.__doc__ or "").strip().splitlines()
            print(f"{function.__name__:24} {'+'.join(function.sets):12} {function.guests} guests  {about[0] if about else ''}")
        return 0
    programs = [path for path in os.environ.get("KVX_RDMA_PROGRAMS", "").split(":") if path]
    cache = os.environ.get("KVX_RDMA_CACHE") or os.path.join(os.environ.get("MESON_BUILD_ROOT", "build"), "rdma-cache")
    seed = int(os.environ.get("KVX_RDMA_SEED") or random.randrange(1 << 32))
    with Runner(programs, os.path.abspath(cache), seed, os.environ.get("KVX_RDMA_KEEP")) as runner:
        if "--shell" in words:
            shell(runner)
        else:
            runner.run(chosen([word for word in words if not word.startswith("-")]))
        return 1 if runner.n_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
