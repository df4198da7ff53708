# SPDX-License-Identifier: Apache-2.0
"""A lab described, brought up, used and taken down by one program.

::

    sudo .venv/bin/python examples/lab_from_python.py

The dictionary has the shape of a lab file, see docs/lab-file.md. What is measured here is nothing
but that everything works; for figures there is ``make demo``.
"""

from __future__ import annotations

import mint_vni as mint

LAB = {
    "lab": "from-python",
    "network": {"ipv4": "10.77.9.0/24", "ipv6": "fd77:9::/64"},
    "ssh": "mesh",
    "defaults": {"memory": "256M"},
    "nodes": {"left": {}, "middle": {}, "right": {}},
}


def show_traffic(lab: mint.Lab) -> None:
    """Print what went through each channel, from the counters in shared memory."""
    for channel in lab.status()["channels"]:
        if channel["frames"]:
            name = f"{channel['from']} -> {channel['to']}"
            print(f"{name:20} {channel['frames']:6} frames {channel['bytes']:10} bytes")


def main() -> None:
    """Run programs in nodes, over the network and not, and look at the counters."""
    with mint.Lab.up(LAB, progress=print) as lab:
        left = lab["left"]
        # Unmodified ssh, from one Linux to another to a third.
        hop = left.run(["ssh", "middle", "ssh", "right", "hostname"])
        print("left -> middle -> right:", hop.stdout.strip())

        # A file over the network, byte for byte.
        text = "".join(f"line {number}\n" for number in range(10_000))
        left.run(["ssh", "right", "cat > /tmp/copy"], input=text)
        copied = lab["right"].run(["cat", "/tmp/copy"]).stdout
        print("file arrived whole:", copied == text)

        # Two programs at once: a server in one node, its client in another.
        with lab["right"].popen(["iperf3", "-s", "-1"], stdout=-3) as server:
            client = (
                "for i in 1 2 3 4 5; do iperf3 -c right -n 64M && exit; sleep 0.2; done; exit 1"
            )
            left.run(["sh", "-c", client], timeout=60)
            server.wait(timeout=10)

        # Neither has any other way to the other than the fabric.
        interfaces = left.run(["ls", "/sys/class/net"]).stdout.split()
        print("interfaces of left:", ", ".join(interfaces))
        show_traffic(lab)
    print("labs that are left:", mint.Lab.names() or "none")


if __name__ == "__main__":
    try:
        main()
    except mint.MintError as error:
        raise SystemExit(f"lab_from_python.py: {error}") from None
