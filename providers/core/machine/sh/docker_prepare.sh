# shellcheck shell=sh
# Brings $image here, as $user of the registry $server, whose password is on stdin; after docker.sh. `latest` is asked for each time.
# shellcheck disable=SC2086,SC2154 # $pg_docker may be two words; the variables are set in front of this
if has_nvidia; then
    command -v nvidia-container-runtime-hook >/dev/null || command -v nvidia-container-cli >/dev/null ||
        command -v nvidia-ctk >/dev/null || exit 14
fi
case ${image##*/} in *:latest) fixed='' ;; *:* | *@*) fixed=1 ;; *) fixed='' ;; esac
present=
$pg_docker image inspect "$image" >/dev/null 2>&1 && present=1
[ -z "$present" ] || [ -z "$fixed" ] || exit 0
# In memory where there is any, and gone when this ends.
config=$(mktemp -d /dev/shm/prefect-gpu.XXXXXX 2>/dev/null || mktemp -d) || exit 13
trap 'rm -rf "$config"' EXIT
trap 'exit 1' HUP INT TERM PIPE
if [ -n "$user" ]; then
    answer=$($pg_docker --config "$config" login --username "$user" --password-stdin "$server" 2>&1) ||
        { printf '%s\n' "$answer" >&2; exit 12; }
fi
$pg_docker --config "$config" pull --quiet "$image" >/dev/null || { [ -n "$present" ] || exit 13; }
