# SPDX-License-Identifier: Apache-2.0
"""The main job, shown; what ``make demo`` runs.

Two acts: `namespaces`, two Linuxes on the host's kernel; `kernels`, two that boot kernels of their
own. Every step is an unmodified program that a user would run, and its output is checked.
"""
