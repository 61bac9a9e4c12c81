"""Jobs in container images: the job runs in Docker on the machine, and its output, exit code, cancel and files are as without.

`prepare` brings the image there (registry credentials live in memory, as long as the pull takes); `in_docker` says how the supervisor
runs the job in it. The job's directory is mounted as `/job`. The image's entrypoint is not run: the command is what runs.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Final

from prefect_gpu.providers.core.aside import never
from prefect_gpu.providers.core.errors import AuthFailed, InstanceFailed, InvalidRequest, LinkLost
from prefect_gpu.providers.core.machine import scripts
from prefect_gpu.providers.core.machine.jobs import DEFAULT_ROOT, Machine, checked_id
from prefect_gpu.providers.core.machine.shell import plain
from prefect_gpu.providers.core.machine.wrap import Wrap
from prefect_gpu.providers.core.models import JobSpec

MOUNT: Final = "/job"  # where a container sees the job's directory
NAME_LABEL: Final = "prefect-gpu.name"  # the instance's name: what a lease left in Docker is found by
JOB_LABEL: Final = "prefect-gpu.job"
PULL_S: Final = 45 * 60.0

# Names that would change how `docker` itself runs: they reach the container by value, never by the environment of the client.
_OF_THE_CLIENT: Final = ("PATH", "HOME", "LD_", "DOCKER_")
_SLICE: Final = "CUDA_VISIBLE_DEVICES"

# The image's best shell, which the machine cannot know. The two dashes: a command may begin with one.
_SHELL: Final = 'command -v bash >/dev/null && exec bash -c -- "$1"; exec sh -c -- "$1"'


def prepare(
    machine: Machine,
    job: JobSpec,
    should_stop: Callable[[], str | None] = never,
    *,
    timeout_s: float = PULL_S,
) -> None:
    """Bring the job's image to the machine, unless it is there; `latest` is asked for each time.

    Raises InstanceFailed where Docker is missing, broken or has no way to the GPUs, or the pull fails; InvalidRequest where the
    registry has no such image for these credentials, AuthFailed where it refuses them; LinkLost; Stopped.
    """
    if job.image is None:
        return
    image, registry = job.image, job.registry
    script = scripts.assigned(
        image=_checked(image),
        server=registry.server if registry else "",
        user=registry.username if registry else "",
    ) + scripts.text("docker", "docker_prepare")
    password = registry.password.get_secret_value().encode() if registry else b""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            done = machine.execute(
                script, password, timeout_s=max(1.0, deadline - time.monotonic()), should_stop=should_stop
            )
            break
        except LinkLost as lost:  # layers that had come stay
            if time.monotonic() + 1 >= deadline:
                raise InstanceFailed(
                    f"the image {image} did not come within {timeout_s / 60:.0f} min", category="image"
                ) from lost
    words = _last_words(done.stderr)
    match done.exit_code:
        case 0:
            return
        case 10:
            raise InstanceFailed(
                f"the job wants the image {image} and this machine has no Docker: install it there, or leave job.image empty"
            )
        case 11:
            raise InstanceFailed(f"Docker on this machine cannot be used: {words}")
        case 12:
            raise AuthFailed(
                f"the registry {registry.server if registry else ''} refuses the credentials of job.registry: {words}"
            )
        case 14:
            raise InstanceFailed(
                "this machine has GPUs and its Docker cannot hand them to containers: install nvidia-container-toolkit there"
            )
        case _ if _is_absent(words):
            hint = "" if registry else "; if it needs credentials, name them by job.registry"
            raise InvalidRequest(f"the registry does not give out the image {image}: {words}{hint}", category="image")
        case _:
            raise InstanceFailed(
                f"the image {image} cannot be pulled: {words or f'exit {done.exit_code}'}", category="image"
            )


def in_docker(job: JobSpec, *, root: str = DEFAULT_ROOT) -> Wrap:
    """How the supervisor runs this job in Docker; the image must be there. InvalidRequest for a variable Docker cannot take."""
    if job.image is None:
        raise InvalidRequest("a job without an image runs in no container")
    for name in job.secrets:
        if _is_of_the_client(name):
            raise InvalidRequest(
                f"a secret cannot reach a container as {name}: Docker's client reads that variable itself"
            )
    by_name = [*(name for name in job.env if not _is_of_the_client(name) and name != _SLICE), *job.secrets]
    by_name += ["PREFECT_GPU_JOB", "PYTHONUNBUFFERED"]
    by_value = [f"{name}={value}" for name, value in job.env.items() if _is_of_the_client(name)]
    parts = [part for part in PurePosixPath(job.working_directory or "").parts if part != "."]
    options = " ".join(f"--env {shlex.quote(one)}" for one in (*by_name, *by_value))
    if isinstance(job.command, str):  # the argv that the machine made of it is dropped
        command = f'set -- {options} --entrypoint sh "$pg_image" {shlex.join(["-c", _SHELL, "sh", job.command])}'
    else:
        command = f'pg_first=$1; shift; set -- {options} --entrypoint "$pg_first" "$pg_image" "$@"'
    what = scripts.assigned(pg_id=checked_id(job.id), pg_image=_checked(job.image), pg_mount=MOUNT)
    how = scripts.assigned(
        pg_up="/".join(".." for _ in parts),
        pg_name=job.id.partition(".")[0],
        pg_job_label=JOB_LABEL,
        pg_name_label=NAME_LABEL,
        pg_workdir=str(PurePosixPath(MOUNT, *parts)),
        pg_preserved=",".join([*by_name, _SLICE]),
    )
    return Wrap(
        run=f"{what}{how}{scripts.text('docker')}{command}\n{scripts.text('docker_run')}",
        clean_up=what + scripts.assigned(pg_root=root) + scripts.text("docker_clean_up"),
        withheld=frozenset(name for name in job.env if _is_of_the_client(name)),
    )


def _is_of_the_client(name: str) -> bool:
    return name in _OF_THE_CLIENT or name.startswith(("LD_", "DOCKER_"))


def _checked(image: str) -> str:
    if not image or image.startswith("-") or not image.isprintable() or " " in image:
        raise InvalidRequest(f"{image!r} is not a valid name of an image: write for example ghcr.io/team/train:1.2")
    return image


def _is_absent(words: str) -> bool:
    lowered = words.lower()
    return any(
        sign in lowered
        for sign in (
            "manifest unknown",
            "not found",
            "repository does not exist",
            "access denied",
            "invalid reference format",
            "unauthorized",
            "no basic auth",
        )
    )


def _last_words(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("Using default tag")]
    return plain(lines[-1][:300].removeprefix("Error response from daemon: ")) if lines else ""
