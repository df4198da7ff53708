# SPDX-License-Identifier: Apache-2.0
"""Measurements: what ``mint bench`` runs. docs/benchmarks.md is for users of it.

=============  ====================================================================
the frame
`result`       metrics, rows, results: one shape for all parts
`part`         what a part is; measures in turns
`show`         progress and tables
`compare`      two results: what moved, and whether it is beyond the noise
`noise`        medians, spreads, and what machine this is
the parts
`frames`       the packet buffers alone, as the paper measured them
`sockets`      iperf3 between nodes
`latency`      round trips
`isolation`    what a neighbour does to others
`memory`       of the packet buffers, as the number of Linuxes grows
`peers`        the same over what people would use instead
`report`       all of it, as a folder of pages and plots
what they use
`runner`       a process that carries out runs of frames (no threads: it forks)
`iperf`        unmodified iperf3
`meter`        ping, and mint-meter: round trips and floods
`ways`         ways from one place to another: labs, veth, bridges, VDE, DPDK
`guests`       ways between guests: UML's vector driver, QEMU's own back ends
`leash`        ends what a benchmark that was killed has left
=============  ====================================================================
"""
