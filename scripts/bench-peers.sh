#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# bench-peers.sh - what `mint bench peers` compares with, where it is missing; what
# `make bench-peers` runs. Nothing of Mint VNI needs any of it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACKAGES=(
    vde2     # vde_switch and vde_plug2tap: a switch in user space
    dpdk-dev # dpdk-testpmd: memif between two processes, TAP between two namespaces
)
MODULES=(
    iceoryx2   # frames between two Python processes
    matplotlib # the report's plots
)

as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
if command -v apt-get >/dev/null; then
    "${as_root[@]}" apt-get -qq update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${PACKAGES[@]}"
else
    echo "bench-peers: this is no Debian; install what brings: ${PACKAGES[*]}"
fi
"${VENV:-.venv}/bin/python" -m pip install --quiet --disable-pip-version-check "${MODULES[@]}"
echo "bench-peers: ready; now: mint bench peers"
