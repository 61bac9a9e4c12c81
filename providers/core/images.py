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

from providers.core.aside import never
from providers.core.errors import AuthFailed, InstanceFailed, InvalidRequest, LinkLost
from providers.core.jobs import DEFAULT_ROOT, Machine, Wrap, checked_id
from providers.core.models import JobSpec

MOUNT: Final = "/job"  # where a container sees the job's directory
NAME_LABEL: Final = "prefect-gpu.name"  # the instance's name: what a lease left in Docker is found by
JOB_LABEL: Final = "prefect-gpu.job"
PULL_S: Final = 45 * 60.0

# Names that would change how `docker` itself runs: they reach the container by value, never by the environment of the client.
_OF_THE_CLIENT: Final = ("PATH", "HOME", "LD_", "DOCKER_")
_SLICE: Final = "CUDA_VISIBLE_DEVICES"

# Sets $docker. Debian's and cloud images' first user is in no docker group, but may sudo.
_DOCKER = r"""
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/snap/bin
docker=docker
command -v docker >/dev/null || { echo "Docker is not installed" >&2; exit 10; }
if ! why=$(docker version --format '{{.Server.Version}}' 2>&1); then
    docker="sudo -n docker"
    $docker version >/dev/null 2>&1 || { printf '%s\n' "$why" >&2; exit 11; }
fi
"""

_HAS_NVIDIA = "[ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || nvidia-smi -L >/dev/null 2>&1"

_PREPARE = r"""
if {has_nvidia}; then
    command -v nvidia-container-runtime-hook >/dev/null || command -v nvidia-container-cli >/dev/null ||
        command -v nvidia-ctk >/dev/null || exit 14
fi
case ${{image##*/}} in *:latest) fixed= ;; *:* | *@*) fixed=1 ;; *) fixed= ;; esac
present=
$docker image inspect "$image" >/dev/null 2>&1 && present=1
[ -z "$present" ] || [ -z "$fixed" ] || exit 0
# In memory where there is any, and gone when this ends.
config=$(mktemp -d /dev/shm/prefect-gpu.XXXXXX 2>/dev/null || mktemp -d) || exit 13
trap 'rm -rf "$config"' EXIT
trap 'exit 1' HUP INT TERM PIPE
if [ -n "$user" ]; then
    answer=$($docker --config "$config" login --username "$user" --password-stdin "$server" 2>&1) || {{ printf '%s\n' "$answer" >&2; exit 12; }}
fi
$docker --config "$config" pull --quiet "$image" >/dev/null || {{ [ -n "$present" ] || exit 13; }}
"""

_RUN = r"""
work=$(cd "./{up}" && pwd -P) || exit 125
shm=$(awk '/^MemTotal:/ {{ print int($2 / 2) }}' /proc/meminfo 2>/dev/null)
set -- {entrypoint} "$image" {arguments}"$@"
gpus=
if {has_nvidia}; then
    case ${{{slice}-all}} in
        '') ;;
        all) gpus=all ;;
        *) gpus="\"device=${slice}\"" ;;
    esac
    [ -z "$gpus" ] || set -- --gpus "$gpus" --ulimit memlock=-1 --ulimit stack=67108864 "$@"
elif [ -e /dev/kfd ]; then
    set -- --device /dev/kfd --device /dev/dri --group-add "$(stat -c %g /dev/kfd)" --security-opt seccomp=unconfined "$@"
fi
# Inside, the devices of a slice are counted from 0 again.
[ -n "$gpus" ] || [ -z "${{{slice}+set}}" ] || set -- --env {slice} "$@"
# An init of its own hands signals on and collects what the job orphans; Debian packages it apart.
case $($docker info --format '{{{{.InitCommit.ID}}}}' 2>/dev/null) in '' | N/A) ;; *) set -- --init "$@" ;; esac
# Not root in the image: the job's directory must be writable for it. The folder around it is closed to others.
case $($docker image inspect --format '{{{{.Config.User}}}}' "$image" 2>/dev/null) in
    '' | 0 | 0:* | root | root:*) ;;
    *) chmod -R a+rwX "$work" 2>/dev/null ;;
esac
case $docker in sudo*) docker="sudo -n --preserve-env={preserved} docker" ;; esac
exec $docker run --pull never --name {job_id} --label {job_label}={job_id} --label {name_label}={name} \
    --volume "$work:{mount}" --workdir {workdir} ${{shm:+--shm-size "${{shm}}k"}} {variables} "$@"
"""

# A client that was ended while it asked for a container gets it after its end, so what is not there is looked for again. Files
# that the container's user owns are given to the machine's, by whatever may do it.
_CLEAN_UP = r"""
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/snap/bin
docker=docker
docker version >/dev/null 2>&1 || docker="sudo -n docker"
for pause in 0.2 0.4 0.8 0; do
    [ -z "$($docker rm --force --volumes {job_id} 2>&1 >/dev/null)" ] && break
    sleep $pause || sleep 1
done
[ "$(id -u)" = 0 ] && exit
root={root}
case $root in '~'/*) root=$HOME/${{root#??}} ;; esac
[ -d "$root/{job_id}" ] || root=/var/tmp/prefect-gpu-$(id -u)
[ -d "$root/{job_id}/work" ] || exit 0
[ -n "$(find "$root/{job_id}/work" ! -user "$(id -u)" 2>/dev/null | head -n 1)" ] || exit 0
sudo -n chown -R "$(id -u):$(id -g)" "$root/{job_id}/work" 2>/dev/null ||
    $docker run --pull never --rm --network none --user 0 --entrypoint chown --volume "$root/{job_id}/work:{mount}" "$image" \
        -R "$(id -u):$(id -g)" {mount}
"""

_SHELL = 'command -v bash >/dev/null && exec bash -c "$1"; exec sh -c "$1"'


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
    script = (
        f"image={shlex.quote(_checked(image))} server={shlex.quote(registry.server if registry else '')} "
        f"user={shlex.quote(registry.username if registry else '')}\n{_DOCKER}{_PREPARE.format(has_nvidia=_HAS_NVIDIA)}"
    )
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
                raise InstanceFailed(f"the image {image} did not come within {timeout_s / 60:.0f} min") from lost
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
            raise InvalidRequest(f"the image {image} is not there for us: {words}{hint}")
        case _:
            raise InstanceFailed(f"the image {image} cannot be pulled: {words or f'exit {done.exit_code}'}")


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
    # A string goes to the image's best shell, which the machine cannot know; the argv that the machine made of it is dropped.
    is_text = isinstance(job.command, str)
    shell = ["-c", _SHELL, "sh", *([job.command] if isinstance(job.command, str) else ())]
    run = _RUN.format(
        up="/".join(".." for _ in parts),
        entrypoint="--entrypoint sh" if is_text else '--entrypoint "$first"',
        arguments=shlex.join(shell) + " " if is_text else "",
        has_nvidia=_HAS_NVIDIA,
        slice=_SLICE,
        preserved=",".join([*by_name, _SLICE]),
        job_id=job.id,
        job_label=JOB_LABEL,
        name_label=NAME_LABEL,
        name=job.id.partition(".")[0],
        mount=MOUNT,
        workdir=shlex.quote(str(PurePosixPath(MOUNT, *parts))),
        variables=" ".join(f"--env {shlex.quote(one)}" for one in (*by_name, *by_value)),
    )
    return Wrap(
        run=f"image={shlex.quote(_checked(job.image))}\n{_DOCKER}{'shift $#' if is_text else 'first=$1; shift'}\n{run}",
        clean_up=f"image={shlex.quote(job.image)}\n"
        + _CLEAN_UP.format(job_id=checked_id(job.id), mount=MOUNT, root=shlex.quote(root)),
        withheld=frozenset(name for name in job.env if _is_of_the_client(name)),
    )


def _is_of_the_client(name: str) -> bool:
    return name in _OF_THE_CLIENT or name.startswith(("LD_", "DOCKER_"))


def _checked(image: str) -> str:
    if not image or image.startswith("-") or not image.isprintable() or " " in image:
        raise InvalidRequest(f"{image!r} names no image: write for example ghcr.io/team/train:1.2")
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
    return lines[-1][:300].removeprefix("Error response from daemon: ") if lines else ""
