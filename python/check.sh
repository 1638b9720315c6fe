#!/bin/sh
# Builds sdist and wheel, installs the wheel into a fresh virtual environment and checks everything.
#	KVXFERD=build/daemon/kvxferd python/check.sh [pytest arguments]
# From the package index: build, meson-python, meson, ninja, cffi, setuptools (to build); numpy, pytest,
# hypothesis, mypy (to test); torch where it is there already ($KVXFER_CHECK_TORCH: pip's name for it).
# PYTHON names the interpreter.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
KVXFERD=$(realpath "${KVXFERD:-$here/../build/daemon/kvxferd}")
export KVXFERD
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
"${PYTHON:-python3}" -m venv "$tmp/venv"
pip="$tmp/venv/bin/python -m pip --disable-pip-version-check install -q"
$pip build numpy pytest hypothesis mypy ${KVXFER_CHECK_TORCH:-}
"$tmp/venv/bin/python" -m build -o "$tmp/dist" "$here" >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }
ls "$tmp/dist"
$pip "$tmp"/dist/*.whl
cp -r "$here/tests" "$here/examples" "$here/README.md" "$here/pyproject.toml" "$tmp"
cd "$tmp"
"$tmp/venv/bin/python" -W error::ResourceWarning -m pytest -p no:cacheprovider -q "$@" tests
