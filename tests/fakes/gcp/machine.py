"""A machine of Compute Engine: it answers SSH, and Google's guest agent is on it."""

from __future__ import annotations

import configparser
import subprocess
from typing import Any

from prefect_gpu.providers.core.machine.keys import derive
from tests.fakes.aws.machine import Machine

CONFIG = "/etc/default/instance_configs.cfg"


class GceMachine(Machine):
    """Like any other, but for the guest agent: it makes new host keys at the first boot unless its configuration says otherwise."""

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        if self.keeps_host_keys():
            super().start()
            return
        made = derive(b"the guest agent", self.folder.name, "host")
        self.config["ssh_keys"] = {"ed25519_private": made.private.get_secret_value(), "ed25519_public": made.public}
        super().start()

    def keeps_host_keys(self) -> bool:
        """Whether the agent's configuration, after cloud-init's `bootcmd` of two boots, leaves host keys alone."""
        file = self.folder / "instance_configs.cfg"
        file.write_text(
            "[Daemons]\naccounts_daemon = true\n\n[InstanceSetup]\nnetwork_enabled = true"
        )  # no last newline
        for _ in range(2):
            for line in self.config.get("bootcmd", []):
                subprocess.run(["sh", "-c", line.replace(CONFIG, str(file))], check=True)
        assert file.read_text().count("set_host_keys") <= 1, "each boot adds a line"
        # The agent reads it with go-ini, where a section that comes again goes on.
        agent = configparser.RawConfigParser(strict=False)
        agent.read(file)
        return agent.get("InstanceSetup", "set_host_keys", fallback="true") == "false"


def user_data_of(metadata: list[dict[str, Any]]) -> str | None:
    """What cloud-init finds in a machine's metadata."""
    return next((one["value"] for one in metadata if one["key"] == "user-data"), None)
