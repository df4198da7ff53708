# SPDX-License-Identifier: Apache-2.0
"""Nodes that have a kernel of their own: what goes into them, and how to talk to their inside.

`initramfs` and `script` make what a kernel boots into, with ``mint-guest`` (native/guest) as its
first process; `channel` is the host's end of the exec channel to it, in the node's agent;
`exec_client` and `console_client` are what a command line becomes; `argv` makes those.
"""
