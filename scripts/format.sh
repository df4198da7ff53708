#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# format.sh - rewrite Python and C into the form that check.sh wants; what `make format` runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BIN=${VENV:-.venv}/bin

"$BIN/ruff" format
"$BIN/ruff" check --fix-only
find native tests/native -name '*.[ch]' -print0 | xargs -0 "$BIN/clang-format" -i
