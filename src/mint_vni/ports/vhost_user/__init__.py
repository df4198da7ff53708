# SPDX-License-Identifier: Apache-2.0
"""Ports of attachment ``vhost-user``: a guest's stock virtio-net driver, served by our worker.

The vhost-user protocol (docs/interop/vhost-user.rst of QEMU) joins two programs: a *front end*, the
virtual machine (QEMU, User-Mode Linux, Cloud Hypervisor, DPDK), and a *back end*, us. Here the back
end is two processes: the node's agent, which speaks the protocol, and its worker, which moves the
frames between the guest's memory and the fabric (``native/vhost.c``).

`protocol` has the messages, `link` what the agent tells the worker, `device` the device's state and
what each message does to it, `server` the sockets. They use the standard library alone: an agent is
one process a guest, so it has to be small.
"""
