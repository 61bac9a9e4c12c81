"""The cloud-config that a rented machine boots with: its host key, who may log in, and the end of its lease.

User data can be read on the machine by any process and in the account by whoever may describe it, so nothing else secret
goes into it. https://cloudinit.readthedocs.io/en/latest/reference/modules.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Final

import yaml

from prefect_gpu.providers.core.models import LaunchSpec

FOLDER: Final = "/usr/local/lib/prefect-gpu"


def user_data(
    spec: LaunchSpec,
    *,
    powers_off: bool,
    as_root: bool = False,
    services: Mapping[str, str] | None = None,
    first: Sequence[str] = (),
    last: Sequence[str] = (),
) -> str:
    """The cloud-config of one order: the same bytes for the same arguments.

    Args:
        spec: The order; its host key is placed where it has one.
        powers_off: Whether the machine powers itself off at the lease's end. Only where that ends the bill.
        as_root: Whether root is who logs in, where the image has another default user or none.
        services: Names and `sh` scripts that run on the machine from its boot on, and again when they end.
        first: Lines of `sh` that run at every boot before sshd and what the vendor's image starts by itself.
        last: Lines of `sh` that run once, at the end of its first boot.
    """
    scripts = dict(services or {})
    units: dict[str, str] = {}
    starts: list[str] = []
    for name in scripts:
        units[f"prefect-gpu-{name}.service"] = _service(name)
        starts.append(f"prefect-gpu-{name}.service")
    if powers_off:
        scripts["lease"] = _lease(spec)
        units["prefect-gpu-lease.service"] = _LEASE_SERVICE
        units["prefect-gpu-lease.timer"] = _LEASE_TIMER.format(end=spec.deadline.astimezone(UTC))
        starts.insert(0, "prefect-gpu-lease.timer")

    config: dict[str, object] = {"ssh_authorized_keys": [spec.client_public_key], "ssh_deletekeys": True}
    if first:
        config["bootcmd"] = list(first)
    if as_root:
        config["disable_root"] = False
    if spec.host_key is not None:
        config["ssh_keys"] = {
            "ed25519_private": spec.host_key.private.get_secret_value(),
            "ed25519_public": spec.host_key.public,
        }
    if starts:
        config["write_files"] = [
            *({"path": f"{FOLDER}/{name}", "permissions": "0755", "content": text} for name, text in scripts.items()),
            *({"path": f"/etc/systemd/system/{name}", "content": text} for name, text in units.items()),
        ]
    runs: list[object] = [*last]
    if starts:
        runs += [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", *starts]]
    if runs:
        config["runcmd"] = runs
    return "#cloud-config\n" + yaml.safe_dump(config, sort_keys=True, width=10_000)


def _service(name: str) -> str:
    return (
        f"[Unit]\nDescription=prefect-gpu: {name}\n\n[Service]\nExecStart={FOLDER}/{name}\nRestart=always\nRestartSec=5\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def _lease(spec: LaunchSpec) -> str:
    """The script that looks whether the lease is over, without its comments: EC2 takes 16 KB of user data."""
    first, *lines = _LEASE.splitlines()
    given = f"end={int(spec.deadline.timestamp())} lasts={spec.lasts_s} boots={spec.boots_s}"
    return "\n".join([first, given, *(line for line in lines if line and not line.startswith("#")), ""])


_LEASE: Final = (Path(__file__).parent / "sh" / "lease.sh").read_text()

# The timer alone would follow the calendar, and miss an end that passed while the machine was down (a timer in the past never
# fires). So it only makes the script look: soon after each boot, every minute by the clock that nobody sets, and at the end.
_LEASE_SERVICE = f"""\
[Unit]
Description=prefect-gpu: power off if the lease is over

[Service]
Type=oneshot
ExecStart={FOLDER}/lease
"""

_LEASE_TIMER = """\
[Unit]
Description=prefect-gpu: the lease ends at {end:%Y-%m-%d %H:%M:%S} UTC

[Timer]
OnCalendar={end:%Y-%m-%d %H:%M:%S} UTC
OnBootSec=60
OnUnitActiveSec=60
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
