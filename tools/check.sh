#!/usr/bin/env bash
# Installs what is needed (Debian 12), builds, runs every test, and ends with "N passed, N failed, N skipped".
#
#   tools/check.sh            everything: plain, ASan+UBSan, TSan and clang builds, fuzzers, the demo, RDMA in guests
#   tools/check.sh --quick    the plain build and its suites only, without the guests
#   KVX_RDMA=long             every RDMA scenario in full length (20 minutes more)
#   KVX_ENGINES=1             serving engines as well, on the CPU: installs each (gigabytes) and runs its tests (an hour)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=tools/deps.sh
. tools/deps.sh

quick=0
[ "${1:-}" = "--quick" ] && quick=1
fuzz_seconds="${KVX_FUZZ_SECONDS:-15}"
out="${KVX_CHECK_DIR:-build-check}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
rm -rf "$out/results"
mkdir -p "$out/results"

say() { printf '\n== %s (%s)\n' "$*" "$(date +%T)"; }
record() { printf '%s\t%s\t%s\n' "$1" "$2" "${3:-}" >>"$out/results/steps.tsv"; }

# step NAME COMMAND...: one pass or fail of its own in the final count.
step() {
    local name=$1
    shift
    if "$@" >"$out/results/$name.log" 2>&1; then
        record "$name" pass
        echo "ok    $name"
    else
        record "$name" fail
        echo "FAIL  $name: the end of its log follows"
        tail -n 60 "$out/results/$name.log"
        return 1
    fi
}

# build NAME CC OPTIONS...: everything; of the fuzz build only what it is for.
build() {
    local name=$1 cc=$2 targets=()
    shift 2
    [ -e "$out/$name/build.ninja" ] || CC=$cc meson setup "$out/$name" . "$@" || return 1
    [ "$name" = fuzz ] && targets=(fuzzers daemon/kvxferd)
    ninja -C "$out/$name" "${targets[@]}"
}

# suites NAME SUITES [BUILD]: runs them in the build (NAME's) and files each case for the final count.
suites() {
    local name=$1 list=$2 build=${3:-$1} args=() s
    for s in $list; do args+=(--suite "$s"); done
    meson test -C "$out/$build" --no-rebuild --num-processes 2 --print-errorlogs "${args[@]}" || true
    cp "$out/$build/meson-logs/testlog.junit.xml" "$out/results/$name.junit.xml" 2>/dev/null ||
        record "$name-suites" fail
    cp "$out/$build/meson-logs/testlog.txt" "$out/results/$name.testlog.txt" 2>/dev/null
}

# The demo must notice bytes that are wrong.
self_test() {
    "$out/plain/tools/kvxfer-bench/kvxfer-bench" demo --quick --self-test
    [ $? = 1 ]
}

# The Python package as a user gets it: wheel from the sdist, fresh environment, type check, tests.
python_package() {
    KVXFERD="$out/plain/daemon/kvxferd" KVXFERCTL="$out/plain/tools/kvxferctl/kvxferctl" \
        KVXFER_STANDIN="$out/plain/tests/gpu/standin" python/check.sh --junitxml "$out/results/python.junit.xml"
}

# engine NAME: the connector of one engine, in the engine itself and call by call against its classes.
engine() {
    local venv="$out/venv-engine-$1" calls status=0
    "tests/engines/$1/install.sh" "$venv" || return 1
    calls=$(find python/tests/engines -name "test_${1//-/_}*.py" 2>/dev/null)
    export KVXFERD="$out/plain/daemon/kvxferd" KVXFERCTL="$out/plain/tools/kvxferctl/kvxferctl" KVX_MODELS="$out/models"
    "$venv/bin/python" -B -m pytest -p no:cacheprovider -q --junitxml "$out/results/engine-$1.junit.xml" \
        "tests/engines/$1" || status=1
    # shellcheck disable=SC2086
    [ -z "$calls" ] || "$venv/bin/python" -B -m pytest -p no:cacheprovider -q \
        --junitxml "$out/results/engine-$1-calls.junit.xml" $calls || status=1
    return $status
}

# engines: every engine that has tests here, or the reason why not, counted.
engines() {
    local dir name
    for dir in tests/engines/*/; do
        name=$(basename "$dir")
        [ -x "$dir/install.sh" ] || continue
        if [ "${KVX_ENGINES:-0}" = 1 ]; then
            step "engine-$name" engine "$name"
        else
            record "engine-$name" skip "KVX_ENGINES=1 installs $name (gigabytes) and runs it"
        fi
    done
}

say "packages"
kvx_install_packages "${KVX_BUILD_PACKAGES[@]}" "${KVX_TEST_PACKAGES[@]}" || exit 1

say "plain build, all suites"
if step build-plain build plain gcc -Dbuildtype=debugoptimized; then
    suites plain "unit integration style gpu"
    step demo "$out/plain/tools/kvxfer-bench/kvxfer-bench" demo --quick
    step demo-self-test self_test
fi

if [ "$quick" = 0 ]; then
    say "Python package"
    if kvx_install_packages "${KVX_PYTHON_PACKAGES[@]}"; then
        step python python_package
    else
        record python-packages fail
    fi
    say "engines (KVX_ENGINES=${KVX_ENGINES:-0})"
    engines
    say "RDMA on Soft-RoCE in guests (KVX_RDMA=${KVX_RDMA:-short})"
    if kvx_install_packages "${KVX_RDMA_PACKAGES[@]}"; then
        suites rdma "rdma" plain
    else
        record rdma-packages fail
    fi
    say "AddressSanitizer and UndefinedBehaviorSanitizer"
    if step build-asan build asan gcc -Db_sanitize=address,undefined; then
        suites asan "unit integration"
        # The sweeps of failing calls take too long here. Without the interceptor: up to GCC 13 it takes blocks of
        # thread-local memory for ones of an old glibc, and the leak search then dies (google/sanitizers issue 1322).
        ASAN_OPTIONS=intercept_tls_get_addr=0:halt_on_error=1:abort_on_error=1:print_summary=1 \
            step asan-gpu meson test -C "$out/asan" --no-rebuild --num-processes 2 --print-errorlogs \
            transfer-cuda transfer-hip6 storm-cuda
    fi
    say "ThreadSanitizer"
    if step build-tsan build tsan gcc -Db_sanitize=thread; then
        TSAN_OPTIONS="suppressions=$PWD/tests/support/tsan.supp ${TSAN_OPTIONS:-}" suites tsan "unit integration"
    fi
    say "clang: thread roles, fuzzers ($fuzz_seconds s each)"
    if step build-fuzz build fuzz clang -Dfuzz=true; then
        KVX_FUZZ_SECONDS=$fuzz_seconds suites fuzz "fuzz"
    fi
fi

say "result"
python3 tests/support/count_results.py "$out/results"
