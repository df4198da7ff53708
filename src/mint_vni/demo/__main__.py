# SPDX-License-Identifier: Apache-2.0
"""``python -m mint_vni.demo``."""

from __future__ import annotations

import sys
import time

from mint_vni.demo import kernels, namespaces
from mint_vni.demo.stage import act, cpus, out
from mint_vni.errors import MintError


def _play() -> None:
    begin, pair = time.monotonic(), cpus()
    act(
        "Mint VNI: two Linuxes, one machine, shared memory between them",
        namespaces.lab(pair),
        lambda lab: namespaces.play(lab, pair),
    )
    act("Two kernels of their own, the same shared memory", kernels.lab(pair), kernels.play)
    out.print(
        f"\nDone in {time.monotonic() - begin:.0f} s. Next: sudo .venv/bin/mint up"
        " examples/mixed.yaml"
    )


def main() -> int:
    """Run the demonstration; the exit status."""
    try:
        _play()
    except MintError as error:
        print(f"mint: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mint: interrupted; everything was taken down", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
