#!/usr/bin/env python3
"""The client program in README.md is docs/example.c, to the letter. usage: check_readme.py ROOT"""
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
readme = (root / "README.md").read_text()
example = (root / "docs" / "example.c").read_text()
block = re.search(r"```c\n(.*?)```", readme, re.S)
if block is None or block.group(1) != example:
    print("README.md: the C program differs from docs/example.c")
    sys.exit(1)
missing = [name for name in re.findall(r"\]\(((?:docs/|CONTRIBUTING)[^)#]*)\)", readme) if not (root / name).exists()]
if missing:
    print("README.md links to what is not there:", ", ".join(missing))
    sys.exit(1)
