# shellcheck shell=sh
# Runs the job in its image, in the place of this shell; after docker.sh. "$@": the client's options for the variables and the
# command, the image, the command.
# shellcheck disable=SC2086,SC2154 # $pg_docker may be two words; the variables are set in front of this
pg_work=$(cd "./$pg_up" && pwd -P) || exit 125
pg_shm=$(awk '/^MemTotal:/ { print int($2 / 2) }' /proc/meminfo 2>/dev/null)
pg_gpus=
if has_nvidia; then
    case ${CUDA_VISIBLE_DEVICES-all} in
        '') ;;
        all) pg_gpus=all ;;
        *) pg_gpus="\"device=$CUDA_VISIBLE_DEVICES\"" ;;
    esac
    [ -z "$pg_gpus" ] || set -- --gpus "$pg_gpus" --ulimit memlock=-1 --ulimit stack=67108864 "$@"
elif [ -e /dev/kfd ]; then
    set -- --device /dev/kfd --device /dev/dri --group-add "$(stat -c %g /dev/kfd)" --security-opt seccomp=unconfined "$@"
fi
# Inside, the devices of a slice are counted from 0 again.
[ -n "$pg_gpus" ] || [ -z "${CUDA_VISIBLE_DEVICES+set}" ] || set -- --env CUDA_VISIBLE_DEVICES "$@"
# An init of its own hands signals on and collects what the job orphans; Debian packages it apart.
case $($pg_docker info --format '{{.InitCommit.ID}}' 2>/dev/null) in '' | N/A) ;; *) set -- --init "$@" ;; esac
# Not root in the image: the job's directory must be writable for it. The folder around it is closed to others.
case $($pg_docker image inspect --format '{{.Config.User}}' "$pg_image" 2>/dev/null) in
    '' | 0 | 0:* | root | root:*) ;;
    *) chmod -R a+rwX "$pg_work" 2>/dev/null ;;
esac
case $pg_docker in sudo*) pg_docker="sudo -n --preserve-env=$pg_preserved docker" ;; esac
exec $pg_docker run --pull never --name "$pg_id" --label "$pg_job_label=$pg_id" --label "$pg_name_label=$pg_name" \
    --volume "$pg_work:$pg_mount" --workdir "$pg_workdir" ${pg_shm:+--shm-size "${pg_shm}k"} "$@"
