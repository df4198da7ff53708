#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check.sh - everything that is wrong without running anything; what `make check` runs after the
# set-up. All checks run, whichever fail; each failure's output is shown; the last line counts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

BIN=${VENV:-.venv}/bin
OUT=build/check
# As the build, meson.build, has them, and more: strict prototypes and conversions.
CFLAGS=(-std=gnu11 -D_GNU_SOURCE "-I$PWD/native" "-I$PWD/tests/native" -fno-strict-aliasing
    -DMINT_TEST # the places where tests may interfere, so that they are looked at, too
    -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wpointer-arith -Wcast-qual
    -Wstrict-prototypes -Wmissing-prototypes -Wformat=2 -Wvla -Werror)
passed=0
failed=0

# check NAME COMMAND... - run one check.
check() {
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$OUT/log" 2>&1 </dev/null; then
        printf 'check: %-22s ok (%d s)\n' "$name" $((SECONDS - start))
        passed=$((passed + 1))
    else
        printf 'check: %-22s FAILED\n' "$name"
        cat "$OUT/log"
        failed=$((failed + 1))
    fi
}

c_files() { find "$PWD/native" "$PWD/tests/native" -name "$1" -print0 | LC_ALL=C sort -z; }

# compile COMPILER FLAG... - each C file for itself, warnings as errors. -O2, since some warnings
# need the optimiser's view of the data flow. The objects fall into the working directory.
compile() {
    c_files '*.c' | (cd "$OUT" && xargs -0 -n 1 -P "$(nproc)" "$@" "${CFLAGS[@]}" -O2 -c)
}

# clang-tidy's notes run to pages; a finding in a header comes once for each file that includes it.
tidy() {
    local found
    # xargs can put a name only last, clang-tidy wants it before the flags.
    found=$(c_files '*.c' | xargs -0 -P "$(nproc)" -I '{}' \
        "$BIN/clang-tidy" --quiet '{}' -- "${CFLAGS[@]}" 2>&1) || {
        grep -E ': (error|warning): |^xargs: ' <<<"$found" | LC_ALL=C sort -u
        return 1
    }
}

format_c() {
    local bad
    bad=$( { c_files '*.[ch]'; find "$PWD/tests/fuzz" "$PWD/tests/attack" -name '*.[ch]' -print0; } |
        xargs -0 -n 1 sh -c \
        '"$1" --dry-run -Werror "$2" 2>/dev/null || echo "$2"' sh "$BIN/clang-format")
    [ -z "$bad" ] || {
        printf '%s\n' 'not as .clang-format wants it; run make format:' "$bad"
        return 1
    }
}

# Every file that is ours opens with its licence, in the comment of its language.
licence() {
    local bad
    bad=$(find native src tests examples scripts docs -type f \
        \( -name '*.[ch]' -o -name '*.py' -o -name '*.sh' -o -name '*.yaml' \) -print0 |
        xargs -0 awk 'FNR <= 2 && /SPDX-License-Identifier: Apache-2.0/ { ok[FILENAME] = 1 }
                      FNR == 1 { seen[FILENAME] = 1 }
                      END { for (f in seen) if (!ok[f]) print f }')
    [ -z "$bad" ] || {
        printf 'no SPDX line at the top of:\n%s\n' "$bad"
        return 1
    }
}

mkdir -p "$OUT"
check "licence lines" licence
check "ruff format" "$BIN/ruff" format --check
check "ruff check" "$BIN/ruff" check
check "mypy --strict" "$BIN/mypy"
check "clang-format" format_c
check "gcc -Werror" compile gcc
# clang itself is optional; clang-tidy below brings its front end and so its warnings anyway.
if command -v clang >/dev/null; then check "clang -Werror" compile clang; fi
check "clang-tidy" tidy

printf 'check: %d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
