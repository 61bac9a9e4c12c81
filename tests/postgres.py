"""A PostgreSQL of its own, as Debian packages it: what teams run Prefect's server on."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

NOBODY = "nobody"  # PostgreSQL refuses to run as root


def programs() -> Path | None:
    """Where initdb and pg_ctl are: the newest version that is installed, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("pg_ctl")
    return Path(there).resolve().parent if there else None


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The address of an empty database; the cluster is removed at the end."""
    bin_folder = programs()
    if bin_folder is None:
        raise RuntimeError("there is no PostgreSQL here: install the package postgresql")
    with tempfile.TemporaryDirectory(prefix="prefect-gpu-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        as_whom: dict[str, object] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam(NOBODY)
            os.chown(folder, user.pw_uid, user.pw_gid)
            as_whom = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def call(*command: str) -> None:
            done = subprocess.run(
                command,
                cwd=folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": name},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=120,
                check=False,
                **as_whom,  # type: ignore[call-overload]
            )
            if done.returncode:
                raise RuntimeError(f"{Path(command[0]).name}: {done.stderr.strip()}")

        control = str(bin_folder / "pg_ctl")
        data = str(folder / "data")
        call(str(bin_folder / "initdb"), "-D", data, "-U", "prefect", "-A", "trust", "--no-sync")
        options = f"-p {port} -k {name} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
        call(control, "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            call(str(bin_folder / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "prefect")
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
        finally:
            call(control, "-D", data, "-m", "immediate", "stop")
