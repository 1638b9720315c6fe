#!/bin/sh
# Instructions per op of 4,096-op block lists on the stand-in for libibverbs.
# usage: measure_verbs_post.sh BENCH_VERBS_POST [LIMIT]: of a build with optimization; exit status 1 when a list costs
# more than LIMIT instructions per op (600). Needs valgrind.
set -eu
bench=$(realpath "$1")
limit=${2:-600}
split=$(dirname "$(realpath "$0")")/callgrind_split.py
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
valgrind --tool=callgrind --callgrind-out-file=post.out --dump-instr=no "$bench" 2>"$dir/log" || {
    cat "$dir/log"
    exit 1
}
n=1
status=0
for what in "write, nothing to merge" "gathered writes" "read, nothing to merge"; do
    echo "== $what"
    python3 "$split" --limit "$limit" $((20 * 4096)) "post.out.$n" || status=1
    n=$((n + 1))
done
exit $status
