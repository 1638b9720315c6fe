#!/usr/bin/env python3
"""Instructions per op of callgrind profiles, split by where they are spent.

usage: callgrind_split.py [--limit N] OPS FILE...   OPS: ops in each profile; exit status 1: more than N per op

The stand-in for the device library (fake_verbs*) is shown apart: the rest is the daemon's own. Self cost only; what
the kernel does is not counted by callgrind at all.
"""
import collections
import os
import re
import sys

NAME = re.compile(r"^(c?)(fl|fi|fe|fn|ob)=(?:\((\d+)\))?\s*(.*)$")


class Names:
    """callgrind writes a name once and its number from then on."""

    def __init__(self):
        self.known = {}

    def get(self, kind, number, text):
        kind = "file" if kind in ("fl", "fi", "fe") else kind
        if number is None:
            return text
        if text:
            self.known[kind, number] = text
        return self.known.get((kind, number), "?")


def read(path):
    """{(object, file, function): instructions}"""
    names, costs = Names(), collections.Counter()
    here = {"ob": "?", "file": "?", "fn": "?"}
    skip = False
    for line in open(path, errors="replace"):
        line = line.rstrip("\n")
        match = NAME.match(line)
        if match:
            called, kind, number, text = match.groups()
            name = names.get(kind, number, text)
            if not called:
                here["file" if kind in ("fl", "fi", "fe") else kind] = name
        elif line.startswith("calls="):
            skip = True
        elif line[:1].isdigit() or line[:1] in "+-*":
            words = line.split()
            if not skip and len(words) > 1:
                costs[here["ob"], here["file"], here["fn"]] += int(words[1])
            skip = False
    return costs


def place(ob, file, fn):
    """Where a function belongs: its folder for ours, its library for others."""
    if "fake_verbs" in file or fn.startswith(("fv_", "ibv_")):
        return "stand-in"
    match = re.search(r"(daemon(?:/transport/\w+|/\w+)|proto|libclient|tests/support)/[^/]*$", file)
    if match:
        return match.group(1)
    return os.path.basename(ob) or "?"


def main(args):
    limit = float("inf")
    if args[0] == "--limit":
        limit = float(args[1])
        args = args[2:]
    n_ops, paths = int(args[0]), args[1:]
    too_many = 0
    for path in paths:
        costs = read(path)
        places = collections.Counter()
        for (ob, file, fn), cost in costs.items():
            places[place(ob, file, fn)] += cost
        own = sum(places.values()) - places["stand-in"]
        too_many += own / n_ops > limit
        print("%s: %.1f instructions per op, and %.1f in the stand-in" %
              (os.path.basename(path), own / n_ops, places["stand-in"] / n_ops))
        for name, cost in places.most_common(14):
            print("  %8.1f  %s" % (cost / n_ops, name))
        print("  by function:")
        functions = collections.Counter()
        for (ob, file, fn), cost in costs.items():
            if place(ob, file, fn) != "stand-in":
                functions[fn, os.path.basename(file)] += cost
        for (fn, file), cost in functions.most_common(24):
            print("  %8.1f  %s (%s)" % (cost / n_ops, fn, file))
    return 1 if too_many else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
