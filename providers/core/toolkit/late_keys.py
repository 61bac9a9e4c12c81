"""Keys that no cloud-config can place: a script that runs late in the boot, where a vendor takes only that, or where what is placed is deleted.

Until it ran, the machine shows a host key of its image's, which the library takes for not ready.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prefect_gpu.providers.core.models import KeyPair

_SH: Final = Path(__file__).parent / "sh"


def host_key(key: KeyPair) -> str:
    """The script that gives a machine its host key. It holds the private half: whoever can read it can pass for the machine."""
    script = (_SH / "host_key.sh").read_text().replace("@PRIVATE@\n", key.private.get_secret_value())
    return script.replace("@PUBLIC@", key.public)


def root_login(public_key: str) -> str:
    """The script by which root, and nobody but the owner of this key, logs in as root."""
    return (_SH / "root_login.sh").read_text().replace("@CLIENT@", public_key)
