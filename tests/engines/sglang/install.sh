#!/bin/sh
# Makes a virtual environment with SGLang on the CPU and this repository's kvxfer, for the tests here.
#	tests/engines/sglang/install.sh DIRECTORY
# Needs Python 3.11 (PYTHON names it), a C compiler and the headers that python/README.md lists; about 3 GB.
# Everything comes from the package index. SGLang's wheel there is for GPUs, but its Python code runs on a CPU
# (SGLANG_USE_CPU_ENGINE=1) when the packages that its imports ask for are there; what it calls of its own CPU
# kernels, which no index has, is in standin/. TORCH is what pip is asked for: a CPU build, where an index has one.
# Can be run again: what is there stays, kvxfer is built anew.
set -eu
VERSION=${SGLANG_VERSION:-0.5.23}
TORCH=${TORCH:-torch==2.13.0}
VISION=${VISION:-torchvision==0.28.0}
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:?"usage: install.sh DIRECTORY"}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$venv"
venv=$(cd "$venv" && pwd)
python="$venv/bin/python"
pip="$python -m pip --disable-pip-version-check"

if ! "$python" -c "import importlib.metadata as m; assert m.version('sglang') == '$VERSION'" 2>/dev/null; then
	# What SGLang's imports ask for. Its own requirements also name CUDA's packages, which a CPU has no use for.
	$pip install -q "$TORCH" aiohttp anthropic apache-tvm-ffi av blobfile build compressed-tensors==0.18.0 \
		datasets distro easydict einops fastapi gguf interegular IPython llguidance msgspec ninja \
		numba nvidia-ml-py openai==2.8.0 openai-harmony==0.0.4 orjson outlines==0.1.11 packaging \
		partial_json_parser pillow prometheus-client psutil pybase64 pydantic python-dateutil \
		python-multipart pyzmq regex requests safetensors scipy sentencepiece setproctitle soundfile \
		tiktoken tokenizers torch_memory_saver tqdm transformers==5.19.0 triton uvicorn uvloop \
		watchfiles xxhash zstandard
	$pip install -q --no-deps "$VISION" timm==1.0.25 xgrammar==0.2.7 "sglang==$VERSION"
fi
# A torchvision built for CUDA does not load its kernels beside a torch for the CPU, and then does not import:
# two names of kernels, which nothing here calls, are enough.
vision=$("$python" -c "import importlib.util as u; print(u.find_spec('torchvision').submodule_search_locations[0])")
if ! "$python" -c "import torchvision" 2>/dev/null; then
	cat >>"$vision/extension.py" <<-'EOF'


		if not _has_ops():
		    _names = torch.library.Library("torchvision", "DEF")
		    _names.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
		    _names.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
	EOF
fi
$pip install -q pytest hypothesis mypy
$pip install -q sglang-router || echo "no sglang-router: its test will be skipped"
$pip install -q --no-deps --force-reinstall "$here/../../../python"
"$python" -m compileall -q "$(dirname "$vision")/sglang" >/dev/null || true # SGLang's processes start much faster
SGLANG_USE_CPU_ENGINE=1 PYTHONPATH="$here/standin" "$python" -W ignore -c "import kvxfer, sglang, torch
import sglang.srt.managers.scheduler
print('sglang', sglang.__version__, 'torch', torch.__version__, 'kvxfer', kvxfer.__version__)"
