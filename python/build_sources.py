"""Prints where the C sources are and which: the root folder, then the library's .c files.

``csrc`` in an sdist, the repository that this folder lies in otherwise. One per line.
"""

import pathlib

here = pathlib.Path(__file__).resolve().parent
root = here / "csrc" if (here / "csrc").is_dir() else here.parent
print(root)
for pattern in ("gpu/*.c", "libclient/*.c", "proto/*.c"):
    for path in sorted(root.glob(pattern)):
        print(path)
