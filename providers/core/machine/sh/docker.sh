# shellcheck shell=sh
# Sets $pg_docker. Debian's and cloud images' first user is in no docker group, but may sudo. The names begin with pg_ because the
# job's own variables are in this environment, and Docker's client is to hand them on unchanged.
# shellcheck disable=SC2016 # Docker's template, not the shell's
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/snap/bin
pg_docker=docker
command -v docker >/dev/null || { echo "Docker is not installed" >&2; exit 10; }
if ! pg_why=$(docker version --format '{{.Server.Version}}' 2>&1); then
    pg_docker="sudo -n docker"
    $pg_docker version >/dev/null 2>&1 || { printf '%s\n' "$pg_why" >&2; exit 11; }
fi
has_nvidia() { [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || nvidia-smi -L >/dev/null 2>&1; }
