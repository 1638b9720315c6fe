#!/bin/sh
# Runs one fuzzer for KVX_FUZZ_SECONDS (10) from its seed corpus. What it finds goes to a scratch
# directory, so that the committed seeds stay as they are; a failing input is kept and named.
# usage: run_fuzz.sh FUZZER CORPUS
set -eu
found=$(mktemp -d)
kept=${KVX_FUZZ_ARTIFACTS:-$found}
status=0
"$1" -max_total_time="${KVX_FUZZ_SECONDS:-10}" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
	-artifact_prefix="$kept/" "$found" "$2" || status=$?
if [ "$status" -ne 0 ]; then
	echo "failing input kept in $kept" >&2
	exit "$status"
fi
rm -rf "$found"
