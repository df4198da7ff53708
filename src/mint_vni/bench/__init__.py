# SPDX-License-Identifier: Apache-2.0
"""Measurements: what ``mint bench`` runs.

=============  ====================================================================
`frames`       the packet buffers alone, as the paper measured them
`runner`       a process that carries out one run after the other (no threads, so
               that it may fork)
`noise`        medians, spreads, and what machine this is
=============  ====================================================================
"""
