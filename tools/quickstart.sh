#!/usr/bin/env bash
# The first command: installs what is needed (Debian 12), builds, and shows a prefill and a decode engine
# move KV caches through real daemons, on one node and between two, every byte verified.
#
#   tools/quickstart.sh [OPTIONS OF kvxfer-bench demo]
#
# Can be run again at any time: what is installed or built stays as it is. The build is in build/.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/deps.sh
. tools/deps.sh

build=build

kvx_install_packages "${KVX_BUILD_PACKAGES[@]}"

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

echo
echo "Two daemons are two nodes here. For each model a prefill and a decode process hold a KV cache each;"
echo "requests move block by block, scattered, by WRITE (streamed layer by layer) and by READ."
echo
"$build/tools/kvxfer-bench/kvxfer-bench" demo "$@"
