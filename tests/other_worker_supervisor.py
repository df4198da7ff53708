# SPDX-License-Identifier: Apache-2.0
"""A lab's supervisor that starts another worker program than the package's.

python other_worker_supervisor.py PROGRAM  up DIRECTORY FD
"""

from __future__ import annotations

import sys

from mint_vni.lab import supervisor, worker

if __name__ == "__main__":
    program = sys.argv.pop(1)
    worker.worker_binary = lambda: program
    sys.exit(supervisor.main())
