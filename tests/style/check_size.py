#!/usr/bin/env python3
"""Functions over 80 lines and files over 800. Functions are found by universal-ctags.

usage: check_size.py ROOT [--list]. Prints each violation as FILE:LINE: reason; exit status 1 when there is one, 77
(skipped) when ctags is missing. --list prints the longest functions, and those with more than 6 parameters, instead.
"""
import json
import os
import shutil
import subprocess
import sys

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 800
MANY_PARAMETERS = 6
# The public header is a manual too; its length is comments.
LONG_FILES = {"libclient/include/kvxfer/client.h"}


def sources(root):
    for top in ("proto", "gpu", "libclient", "daemon", "tools", "tests"):
        for folder, _, names in sorted(os.walk(os.path.join(root, top))):
            for name in sorted(names):
                if name.endswith((".c", ".h")):
                    yield os.path.relpath(os.path.join(folder, name), root)


def functions(root, paths):
    """(path, line, name, lines, parameters) of each function body."""
    command = ["ctags", "--languages=C", "--kinds-C=f", "--fields=+neS", "--output-format=json", "-I", "KVX_ON_LOOP",
               "-I", "KVX_ON_WORKER", "-f", "-", "-L", "-"]
    out = subprocess.run(command, cwd=root, input="\n".join(paths), capture_output=True, text=True, check=True)
    for line in out.stdout.splitlines():
        tag = json.loads(line)
        if tag.get("_type") != "tag" or "end" not in tag:
            continue
        yield tag["path"], tag["line"], tag["name"], tag["end"] - tag["line"] + 1, count_parameters(tag)


def count_parameters(tag):
    signature = tag.get("signature", "()")
    inside = signature[1:signature.rfind(")")]
    if inside.strip() in ("", "void"):
        return 0
    depth, count = 0, 1
    for char in inside:
        depth += (char == "(") - (char == ")")
        count += char == "," and depth == 0
    return count


def check(root, paths):
    problems = []
    n_functions = 0
    for path in paths:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as source:
            lines = sum(1 for _ in source)
        if lines > MAX_FILE_LINES and path not in LONG_FILES:
            problems.append(f"{path}:1: {lines} lines, at most {MAX_FILE_LINES}")
    for path, line, name, lines, _ in functions(root, paths):
        n_functions += 1
        if lines > MAX_FUNCTION_LINES:
            problems.append(f"{path}:{line}: {name} has {lines} lines, at most {MAX_FUNCTION_LINES}")
    return n_functions, problems


def print_longest(root, paths):
    found = sorted(functions(root, paths), key=lambda f: -f[3])
    for path, line, name, lines, _ in found[:20]:
        print(f"{lines:4} lines {path}:{line} {name}")
    for path, line, name, _, parameters in found:
        if parameters > MANY_PARAMETERS:
            print(f"{parameters:4} parameters {path}:{line} {name}")


def main():
    root = sys.argv[1]
    if shutil.which("ctags") is None or "Universal" not in subprocess.run(
            ["ctags", "--version"], capture_output=True, text=True, check=False).stdout:
        print("SKIPPED: universal-ctags is not installed (apt install universal-ctags); sizes are not checked")
        return 77
    paths = list(sources(root))
    if "--list" in sys.argv:
        print_longest(root, paths)
        return 0
    n_functions, problems = check(root, paths)
    for problem in problems:
        print(problem)
    print(f"{len(paths)} files, {n_functions} functions, {len(problems)} too large")
    if n_functions < 20:
        print(f"too few functions under {root}: is it the root of the tree?")
        return 1
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
