# SPDX-License-Identifier: Apache-2.0
"""The fabric: ports joined by packet buffers in shared memory.

=============  ====================================================================
`fabric`       a fabric of one's own (public: `Fabric`)
`port`         a program's own port (public: `Port`)
`regions`      the shared memory, and who may do what with it
`counters`     reading counters and states from outside
`config`       the core's configuration structures
=============  ====================================================================
"""

from mint_vni.fabric.fabric import Fabric
from mint_vni.fabric.port import Port

__all__ = ["Fabric", "Port"]
