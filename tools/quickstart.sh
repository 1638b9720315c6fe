#!/usr/bin/env bash
# The first command: installs what is needed (Debian 12), builds, and shows a prefill and a decode engine
# move KV caches through real daemons, on one node and between two, every byte verified.
#
#   tools/quickstart.sh [OPTIONS OF kvxfer-bench demo]
#   tools/quickstart.sh --model [OPTIONS OF python/examples/pd_demo]
#
# With --model the engines are real: transformers runs Qwen3 and Llama (tiny, random weights, nothing is downloaded but
# packages) with PyTorch on the CPU, prefill and decode in processes of their own, and every token is compared with
# those of one process. PyTorch, transformers and the kvxfer package go into build/venv-model (2 GB). PyTorch comes from
# its own index of CPU builds unless pip was told of other indexes; KVX_TORCH_INDEX names another one, or none ("").
#
# Can be run again at any time: what is installed or built stays as it is. The build is in build/.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/deps.sh
. tools/deps.sh

build=build
model=false
if [ "${1:-}" = --model ]; then
    model=true
    shift
fi

kvx_install_packages "${KVX_BUILD_PACKAGES[@]}"
if $model; then
    kvx_install_packages "${KVX_PYTHON_PACKAGES[@]}"
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# run WHAT COMMAND...: quiet unless it fails.
run() {
    local what=$1
    shift
    echo "$what"
    "$@" >"$log" 2>&1 || {
        tail -n 60 "$log" >&2
        echo "$what: failed" >&2
        exit 1
    }
}

# A set-up that broke off leaves a directory without build.ninja: meson takes it again.
[ -e "$build/build.ninja" ] || run "setting up $build/" meson setup "$build" -Dtests=false
run "building in $build/" ninja -C "$build" daemon/kvxferd tools/kvxferctl/kvxferctl \
    tools/kvxfer-bench/kvxfer-bench

if $model; then
    venv=$build/venv-model
    [ -x "$venv/bin/pip" ] || run "making $venv" python3 -m venv "$venv"
    index=${KVX_TORCH_INDEX-https://download.pytorch.org/whl/cpu}
    if [ -z "${KVX_TORCH_INDEX+x}" ] && "$venv/bin/pip" config list | grep -q 'index-url'; then
        index=
    fi
    run "installing PyTorch" "$venv/bin/pip" install ${index:+--extra-index-url "$index"} 'torch==2.13.0'
    run "installing transformers" "$venv/bin/pip" install numpy transformers
    run "installing kvxfer" "$venv/bin/pip" install ./python
    echo
    HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 KVXFERD=$build/daemon/kvxferd \
        "$venv/bin/python" python/examples/pd_demo "$@"
    exit
fi

echo
echo "Two daemons are two nodes here. For each model a prefill and a decode process hold a KV cache each;"
echo "requests move block by block, scattered, by WRITE (streamed layer by layer) and by READ."
echo
"$build/tools/kvxfer-bench/kvxfer-bench" demo "$@"
