"""How a command on a pod ended: its exit status, or why it was not run."""

from __future__ import annotations

import json
from typing import Final

from prefect_gpu.providers.core.errors import InstanceFailed, LinkLost
from prefect_gpu.providers.core.machine.shell import plain
from prefect_gpu.providers.kubernetes.objects import as_dict, as_list, as_text

_TOOLS_KEPT: Final = 100  # letters of their names


def must_have_run(stderr: bytes | bytearray, mark: bytes, image: str) -> None:
    """InstanceFailed where exec.sh ran nothing, for want of a tool in the image: it wrote the mark twice, and the tools."""
    if stderr.startswith(2 * mark):
        tools = plain(bytes(stderr[2 * len(mark) :][:_TOOLS_KEPT]).decode(errors="replace"))
        raise InstanceFailed(
            f"the image {image} lacks {tools}, without which no command runs on a pod: add it (coreutils and busybox have it)",
            category="image",
        )


def code(status: bytes, pod: str) -> int:
    """The command's exit status from the Status object of the last message."""
    try:
        parsed = as_dict(json.loads(status))
    except (ValueError, RecursionError):
        raise LinkLost(f"the command on {pod} ended without an exit status: its last message is not a status") from None
    if parsed.get("status") == "Success":
        return 0
    for cause in as_list(as_dict(parsed.get("details")).get("causes")):
        code = as_text(cause.get("message"), 20)
        if cause.get("reason") == "ExitCode" and code.isascii() and code.isdigit() and int(code) < 256:
            return int(code)
    words = as_text(parsed.get("message"), 300) or "its last message is not a status"
    raise LinkLost(f"the command on {pod} ended without an exit status: {words}")
