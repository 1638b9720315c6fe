"""PEP 517 backend: meson-python, but with an sdist of our own.

The client library's C sources lie beside this folder in the repository. The sdist carries them in
``csrc/``, where meson.build looks first, so that a wheel can be built from the sdist alone.
"""

import io
import pathlib
import tarfile

import mesonpy
from mesonpy import (  # noqa: F401  (hooks that are meson-python's own)
    build_editable,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_wheel,
)

HERE = pathlib.Path(__file__).resolve().parent
OWN = ["pyproject.toml", "meson.build", "README.md", "build_backend.py", "build_sources.py",
       "build_cffi.py", "check.sh"]
OWN_DIRS = ["kvxfer", "tests", "bench", "examples"]
C_FILES = ["gpu/*.[ch]", "libclient/*.[ch]", "libclient/include/kvxfer/*.h", "proto/*.[ch]",
           "proto/kvxfer.proto", "LICENSE"]


def get_requires_for_build_sdist(config_settings=None):
    return []


def _files():
    """(path on disk, path in the archive) of everything that the sdist has."""
    for name in OWN:
        yield HERE / name, name
    for folder in OWN_DIRS:
        for path in sorted((HERE / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, str(path.relative_to(HERE))
    root = HERE / "csrc" if (HERE / "csrc").is_dir() else HERE.parent
    for pattern in C_FILES:
        for path in sorted(root.glob(pattern)):
            yield path, f"csrc/{path.relative_to(root)}"


def build_sdist(sdist_directory, config_settings=None):
    with open(HERE / "pyproject.toml", "rb") as f:
        pyproject = mesonpy.tomllib.load(f)
    metadata = mesonpy.Metadata.from_pyproject(pyproject, HERE)
    base = f"{metadata.name}-{metadata.version}"
    with tarfile.open(pathlib.Path(sdist_directory) / f"{base}.tar.gz", "w:gz") as tar:
        for path, name in _files():
            tar.add(path, f"{base}/{name}")
        info = tarfile.TarInfo(f"{base}/PKG-INFO")
        body = bytes(metadata.as_rfc822())
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    return f"{base}.tar.gz"
