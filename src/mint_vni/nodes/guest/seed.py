# SPDX-License-Identifier: Apache-2.0
"""The cloud-init seed of a node that boots a disk image: a small CD of type NoCloud.

cloud-init, which nearly every image for clouds has, finds a CD with the volume id ``cidata`` by
itself and does at the first boot what stands there: host name, addresses by MAC, SSH keys for root,
the names of the lab's nodes, and mint-guest as a service, so that ``mint exec``, readiness and power
off work as in other nodes.

Settings of the image's own stay as they are: for sshd and ssh there are only drop-ins.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from typing import TYPE_CHECKING, Any, Final

import pycdlib

from mint_vni.nodes.guest.script import EXEC_PORT, guest_program
from mint_vni.nodes.ssh import ETC_SSH

if TYPE_CHECKING:
    from mint_vni.lab.plan import NodePlan
    from mint_vni.nodes.base import NodeContext

__all__ = ["make_seed", "meta_data", "network_config", "user_data"]

_PROGRAM: Final = "/usr/local/sbin/mint-guest"
_UNIT: Final = "/etc/systemd/system/mint-guest.service"
_UNIT_TEXT: Final = f"""\
[Unit]
Description=Mint VNI's end of the exec channel
DefaultDependencies=no
After=sysinit.target

[Service]
ExecStart={_PROGRAM} --service port:{EXEC_PORT}
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
"""

# What of a node's /etc/ssh goes where in an image, which has settings of its own.
_PLACES: Final = {
    f"{ETC_SSH}/authorized_keys": f"{ETC_SSH}/mint_authorized_keys",
    f"{ETC_SSH}/ssh_known_hosts": f"{ETC_SSH}/ssh_known_hosts",
    f"{ETC_SSH}/ssh_config": f"{ETC_SSH}/ssh_config.d/00-mint.conf",
    f"{ETC_SSH}/mesh_key": f"{ETC_SSH}/mesh_key",
}
_SSHD_DROP_IN: Final = (
    f"AuthorizedKeysFile .ssh/authorized_keys {ETC_SSH}/mint_authorized_keys\n"
    "PermitRootLogin prohibit-password\n"
    "UseDNS no\n"
)


def make_seed(plan: NodePlan, context: NodeContext) -> bytes:
    """Return the CD.

    Args:
        plan: The node.
        context: As the lab gives it.
    """
    files = {
        "meta-data": meta_data(plan, context),
        "network-config": network_config(plan),
        "user-data": user_data(plan, context),
    }
    disc = pycdlib.PyCdlib()
    disc.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        disc.add_fp(
            io.BytesIO(data),
            len(data),
            f"/FILE{number}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    out = io.BytesIO()
    disc.write_fp(out)
    disc.close()
    return out.getvalue()


def meta_data(plan: NodePlan, context: NodeContext) -> str:
    """Return ``meta-data``; JSON is YAML."""
    identity = f"mint-{context.lab_id}-{plan.name}"
    return json.dumps({"instance-id": identity, "local-hostname": plan.name}, indent=1) + "\n"


def network_config(plan: NodePlan) -> str:
    """Return ``network-config``, version 2."""
    interface = {
        "match": {"macaddress": plan.mac},
        "set-name": plan.interface,
        "dhcp4": False,
        "dhcp6": False,
        "accept-ra": False,
        "mtu": plan.mtu,
        "addresses": [address for address in (plan.ipv4, plan.ipv6) if address is not None],
    }
    return json.dumps({"version": 2, "ethernets": {plan.interface: interface}}, indent=1) + "\n"


def user_data(plan: NodePlan, context: NodeContext) -> str:
    """Return ``user-data``."""
    ssh = context.ssh.node_files(plan.name)
    keys = ssh[f"{ETC_SSH}/authorized_keys"][1].splitlines()
    host_key = f"{ETC_SSH}/ssh_host_ed25519_key"
    config = {
        "preserve_hostname": False,
        "hostname": plan.name,
        "manage_etc_hosts": False,
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": ssh[host_key][1],
            "ed25519_public": ssh[f"{host_key}.pub"][1],
        },
        "ssh_authorized_keys": keys,
        "write_files": _files(context, ssh),
        # Once is enough: enabled, it starts at every boot.
        "runcmd": [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "--now", "mint-guest.service"],
        ],
        "locale": False,
        "package_update": False,
        "package_upgrade": False,
    }
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"


def _files(context: NodeContext, ssh: dict[str, tuple[int, str]]) -> list[dict[str, Any]]:
    hosts = "".join(f"{address} {' '.join(names)}\n" for address, names in context.hosts)
    program = gzip.compress(guest_program().read_bytes(), mtime=0)
    files: list[dict[str, Any]] = [
        {
            "path": _PROGRAM,
            "permissions": "0755",
            "encoding": "gz+b64",
            "content": base64.b64encode(program).decode(),
        },
        {"path": _UNIT, "permissions": "0644", "content": _UNIT_TEXT},
        {"path": "/etc/hosts", "append": True, "content": f"# the lab {context.lab}\n{hosts}"},
        {
            "path": f"{ETC_SSH}/sshd_config.d/00-mint.conf",
            "permissions": "0644",
            "content": _SSHD_DROP_IN,
        },
    ]
    for path, (mode, text) in ssh.items():
        if path in _PLACES:
            entry = {"path": _PLACES[path], "permissions": f"{mode:04o}", "content": text}
            files.append(entry)
    return files
