#!/bin/sh
# Each header compiles alone as C11 with warnings as errors; the public one as C99, C11 and C++ too.
# usage: check_headers.sh ROOT CC [INCLUDE_FLAGS...]
set -u
root=$1
cc=$2
shift 2
warnings="-Wall -Wextra -Werror -Wstrict-prototypes -Wundef -Wno-unused-parameter"
n=0
bad=0

check() { # language standard header flags...
	lang=$1 std=$2 header=$3
	shift 3
	n=$((n + 1))
	flags=$warnings
	[ "$lang" = c ] || flags="-Wall -Wextra -Werror -pedantic"
	# Twice: the second one shows a missing include guard.
	# shellcheck disable=SC2086
	if ! printf '#include "%s"\n#include "%s"\n' "$header" "$header" |
		"$compiler" -x "$lang" -std="$std" $flags -fsyntax-only "$@" -; then
		echo "$header: does not compile alone as $std" >&2
		bad=$((bad + 1))
	fi
}

compiler=$cc
for header in $(cd "$root" && find -L proto gpu daemon tools tests/support tests/gpu libclient -name '*.h' | sort); do
	check c gnu11 "$root/$header" -D_GNU_SOURCE "$@"
done
public=$root/libclient/include/kvxfer/client.h
check c c99 "$public"
check c c11 "$public"
if command -v g++ >/dev/null; then
	compiler=g++
	check c++ c++11 "$public"
	check c++ c++20 "$public"
else
	echo "SKIPPED: no g++, the public header is not checked as C++"
fi
echo "$n checks, $bad failed"
[ "$n" -gt 10 ] && [ "$bad" -eq 0 ]
