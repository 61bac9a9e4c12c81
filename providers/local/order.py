"""How a machine is made: a draft beside it, renamed into place, then its keeper; one order makes one machine, whoever repeats it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prefect_gpu.providers.core.models import InstanceState, LaunchSpec, utc_now
from prefect_gpu.providers.local import directory as directories
from prefect_gpu.providers.local import keeper, listing
from prefect_gpu.providers.local.directory import NEW, Written, machine_id, user_name
from prefect_gpu.providers.local.listing import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping

_GIVE_UP_S: Final = 10.0  # for a process of ours to start


class Exists(Exception):
    """There is a machine of this name, made from another order."""


def start(root: Path, spec: LaunchSpec, environment: Mapping[str, str] | None = None) -> Machine:
    """Make a machine, or find the one that the same order made before. OSError if this host cannot; Exists if it is another's.

    Its jobs see `environment` beside PATH, HOME, USER, LOGNAME, SHELL and LANG. It accepts connections when this returns; its SSH server answers them as soon as it is up.
    """
    if spec.host_key is None:
        raise ValueError("a loopback machine needs its host key")
    directories.make_private(root)
    directory = root / spec.name
    draft = root / f"{NEW}{spec.name}-{secrets.token_hex(4)}"
    (draft / "home").mkdir(parents=True, mode=0o700)
    draft.chmod(0o700)
    try:
        with directories.take_lock(draft) as lock, _listener() as listener:
            _write(draft, spec, listener)
            try:
                draft.rename(directory)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            else:
                try:
                    _run_keeper(directory, spec, environment or {}, lock.fileno(), listener.fileno())
                except OSError:
                    keeper.remove(directory)  # nothing was started: the error is the whole answer
                    raise
                return _read_again(root, spec.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return _start_again(root, spec, environment or {})


def _start_again(root: Path, spec: LaunchSpec, environment: Mapping[str, str]) -> Machine:
    """The same order as before: what it made, and where its creator died halfway, the other half."""
    directory = root / spec.name
    written = directories.written(directory)
    if written is None:
        return _read_again(root, spec.name)
    if written.order != _digest(spec):
        raise Exists(f"there is another machine named {spec.name}: order under a name of its own")
    is_ours = written.host == machine_id()
    if is_ours and not (directory / "keeper").exists() and not (directory / "ending").exists():
        with (
            contextlib.suppress(BlockingIOError, FileNotFoundError),
            directories.take_lock(directory) as lock,
            _listener() as listener,
        ):
            if not (directory / "keeper").exists():
                _write(directory, spec, listener)
                _run_keeper(directory, spec, environment, lock.fileno(), listener.fileno())
    return _read_again(root, spec.name)


def _write(directory: Path, spec: LaunchSpec, listener: socket.socket) -> None:
    port = int(listener.getsockname()[1])
    written = Written(
        name=spec.name,
        host=machine_id(),
        processes=directories.process_namespace(),
        order=_digest(spec),
        port=port,
        user=user_name(),
        created_at=utc_now(),
        deadline=spec.deadline,
    )
    keeper.write_whole(directory / "machine.json", written.model_dump_json())


def _digest(spec: LaunchSpec) -> str:
    host_key = spec.host_key.public if spec.host_key else ""
    return sha256(
        f"{spec.name}\n{spec.deadline.timestamp()}\n{spec.client_public_key}\n{host_key}".encode()
    ).hexdigest()


def _listener() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # from here on clients wait in the kernel's queue for the server to be up
    except BaseException:
        listener.close()
        raise
    return listener


def _run_keeper(directory: Path, spec: LaunchSpec, environment: Mapping[str, str], lock: int, listener: int) -> None:
    """Start the keeper and wait until it has detached and is on record: a fraction of a second."""
    if not sys.executable:
        raise OSError(errno.ENOENT, "Python does not know its own executable, so it cannot start a process of its own")
    home = directory / "home"
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    order = {
        "directory": str(directory),
        "home": str(home),
        "ends": keeper.steady() + (spec.deadline - utc_now()).total_seconds(),
        "client_key": spec.client_public_key,
        "host_key": spec.host_key.private.get_secret_value() if spec.host_key else "",
        "user": user_name(),
        "lock": lock,
        "socket": listener,
        "sys_path": [entry for entry in sys.path if entry],
        "environment": {
            "PATH": path,
            "HOME": str(home),
            "USER": user_name(),
            "LOGNAME": user_name(),
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            **environment,
        },
        "mark": {keeper.MARK: str(directory)},
    }
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env={keeper.MARK: str(directory), "LANG": "C.UTF-8"},
            pass_fds=(lock, listener),
            start_new_session=True,
        )
    try:
        process.communicate(json.dumps(order).encode(), timeout=_GIVE_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _read_again(root: Path, name: str) -> Machine:
    machine = listing.read(root, name)
    if machine is None:  # it was made, and ended by somebody since
        return Machine(
            name, machine_id(), InstanceState.TERMINATED, 0, user_name(), datetime.now(UTC), "", is_visible=True
        )
    return machine
