# SPDX-License-Identifier: Apache-2.0
"""Ports: how frames get from a node to its worker and back.

`tap` opens the interface of a node that runs on the host's kernel.
"""
