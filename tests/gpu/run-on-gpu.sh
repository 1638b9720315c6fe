#!/usr/bin/env bash
# Builds kvxfer and runs the tests of GPU memory on this machine's real GPUs, then measures transfers between GPU
# memory against the runtime's own copy of the same blocks. Needs what tools/deps.sh lists (Criterion included) and
# a CUDA driver or ROCm's HIP runtime; no toolkit.
#
#   tests/gpu/run-on-gpu.sh [cuda|hip]        default: the first one that has a device
#   KVX_GPU_BUILD=DIR                         the build directory, default build-gpu
#   KVX_GPU_LIBRARY_DIR=DIR                   where the runtime's library is, if the loader does not know
#   KVX_GPU_MIB=N                             bytes of a measured transfer, default 1024 MiB; takes 4 times as much
#
# Tests that only a stand-in runtime can be made to do are skipped, each with its reason. Exit status: 0 all passed;
# 1 a test failed, or nothing could be measured; 2 usage; 3 a target for GPU memory was missed; 77 there is no GPU
# that works here.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

case "${1:-}" in
"" | cuda | hip) ;;
*)
    echo "run-on-gpu.sh: '$1' is no runtime: cuda or hip" >&2
    exit 2
    ;;
esac

build="${KVX_GPU_BUILD:-build-gpu}"
[ -n "${KVX_GPU_LIBRARY_DIR:-}" ] && export LD_LIBRARY_PATH="$KVX_GPU_LIBRARY_DIR${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
[ -d /opt/rocm/lib ] && export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/opt/rocm/lib"
export KVX_TEST_REAL_GPU=1

say() { printf '\n== %s\n' "$*"; }

say "build"
if [ ! -e "$build/build.ninja" ]; then
    meson setup "$build" . -Dbuildtype=release || exit 1
fi
tests=(transfer random storm refuse faults bounce wait)
ninja -C "$build" daemon/kvxferd tools/kvxferctl/kvxferctl tests/gpu/gpu_victim tests/gpu/bench_gpu \
    "${tests[@]/#/tests/gpu/gtest_}" || exit 1
build="$(cd "$build" && pwd)"
export KVXFERD="$build/daemon/kvxferd" KVXFERCTL="$build/tools/kvxferctl/kvxferctl"
export KVX_GPU_VICTIM="$build/tests/gpu/gpu_victim"

# The runtime: the one that is asked for, or the first that shows a device.
pick() {
    local name
    for name in ${1:-cuda hip}; do
        KVX_TEST_GPU=$name "$build/tests/gpu/bench_gpu" --probe && { runtime=$name; return 0; }
    done
    return 1
}
say "runtime"
runtime=""
if ! pick "${1:-}"; then
    echo "no GPU works here; kvxferctl doctor says:"
    "$KVXFERCTL" doctor | grep -i -A1 gpu
    exit 77
fi
export KVX_TEST_GPU=$runtime
"$KVXFERCTL" topology
"$KVXFERCTL" doctor | grep -i -A1 gpu

say "tests on $runtime"
status=0
for test in "${tests[@]}"; do
    "$build/tests/gpu/gtest_$test" --tap=- -j1 --timeout 300 || status=1
done

say "bandwidth: kvxfer against the runtime's own copy of the same blocks"
dir=$(mktemp -d)
"$KVXFERD" --socket "$dir/kvxferd.sock" --set "daemon.node_id_file=$dir/node-id" --set peer.enable=false \
    >"$dir/log" 2>&1 &
daemon=$!
trap 'kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; rm -rf "$dir"' EXIT
for _ in $(seq 200); do
    [ -S "$dir/kvxferd.sock" ] && break
    sleep 0.1
done
"$build/tests/gpu/bench_gpu" "$dir/kvxferd.sock" "${KVX_GPU_MIB:-1024}"
measured=$?
grep -E 'gpu|warn|error' "$dir/log"
[ "$status" = 0 ] || exit 1
exit "$measured"
