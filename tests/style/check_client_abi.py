#!/usr/bin/env python3
"""The public face of the client library.

usage: check_client_abi.py LIBRARY.so MAP HEADER EXAMPLE MAN_PAGE CC [CXX]

1. The shared library exports exactly the functions that the header declares, under a version of the map, and the
   map names no others.
2. The header compiles alone as strict C11 and as C++ (when there is a compiler), and so does the example.
3. The library needs nothing but protobuf-c and libc.
4. The man page names every function.
"""
import os
import re
import subprocess
import sys
import tempfile

ALLOWED_NEEDED = {"libprotobuf-c.so.1", "libc.so.6"}
SANITIZER = re.compile(r"lib(asan|ubsan|tsan|m|gcc_s|stdc\+\+|pthread|rt|dl)\b|ld-linux")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def declared(header):
    text = re.sub(r"/\*.*?\*/", "", open(header).read(), flags=re.S)
    text = re.sub(r"typedef[^;]*;", "", text)
    return set(re.findall(r"\b(kvxfer_\w+)\s*\(", text))


def mapped(path):
    text = re.sub(r"/\*.*?\*/", "", open(path).read(), flags=re.S)
    return set(re.findall(r"^\s*(kvxfer_\w+);", text, flags=re.M))


def exported(library):
    names, unversioned = set(), set()
    for line in run("nm", "-D", "--defined-only", "--with-symbol-versions", library).splitlines():
        kind, symbol = line.split()[1:3]
        name, _, version = symbol.partition("@@")
        if kind == "A":
            continue
        if not version.startswith("KVXFER_"):
            unversioned.add(name)
        names.add(name)
    return names, unversioned


def needed(library):
    return set(re.findall(r"\(NEEDED\).*\[(.*?)\]", run("readelf", "-d", library)))


def compile_errors(command, source, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "check" + suffix)
        with open(path, "w") as out:
            out.write(source)
        result = subprocess.run(command + ["-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-c", path, "-o",
                                           os.path.join(folder, "check.o")], capture_output=True, text=True)
        return [] if result.returncode == 0 else [" ".join(command) + ":\n" + result.stderr]


def differences(what, got, want):
    errors = []
    if got - want:
        errors.append("%s, but not declared in the header: %s" % (what, ", ".join(sorted(got - want))))
    if want - got:
        errors.append("declared in the header, but not %s: %s" % (what, ", ".join(sorted(want - got))))
    return errors


def main(library, map_path, header, example, man_page, cc, cxx=None):
    want = declared(header)
    names, unversioned = exported(library)
    include = "-I" + os.path.dirname(os.path.dirname(os.path.abspath(header)))
    alone = "#include <kvxfer/client.h>\n#include <kvxfer/client.h>\nint main(void) { return kvxfer_version() == 0; }\n"
    errors = [] if len(want) > 20 else ["only %d functions found in the header" % len(want)]
    errors += differences("exported", names, want) + differences("in the map", mapped(map_path), want)
    if unversioned:
        errors.append("exported without a version: %s" % ", ".join(sorted(unversioned)))
    foreign = {n for n in needed(library) - ALLOWED_NEEDED if not SANITIZER.match(n)}
    if foreign:
        errors.append("the library needs %s" % ", ".join(sorted(foreign)))
    for source in (alone, open(example).read()):
        errors += compile_errors([cc, "-std=c11", include], source, ".c")
        if cxx:
            errors += compile_errors([cxx, "-std=c++11", include], source, ".cpp")
    text = open(man_page).read().replace("\\-", "-")
    missing = sorted(name for name in want if name not in text)
    if missing:
        errors.append("not in the man page: %s" % ", ".join(missing))
    for error in errors:
        print(error)
    print("%d functions%s" % (len(want), "" if cxx else "; no C++ compiler: C++ not checked"))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
