# shellcheck shell=sh
# Removes the job's container. A client that was ended while it asked for one gets it after its end, so what is not there is looked
# for again. Files that the container's user owns are given to the machine's, by whatever may do it.
# shellcheck disable=SC2086,SC2088,SC2154 # $pg_docker may be two words; the tilde is the letter that came; set in front of this
PATH=$PATH:/usr/local/bin:/usr/bin:/bin:/snap/bin
pg_docker=docker
docker version >/dev/null 2>&1 || pg_docker="sudo -n docker"
for pg_pause in 0.2 0.4 0.8 0; do
    [ -z "$($pg_docker rm --force --volumes "$pg_id" 2>&1 >/dev/null)" ] && break
    sleep $pg_pause || sleep 1
done
[ "$(id -u)" = 0 ] && exit
case $pg_root in '~'/*) pg_root=$HOME/${pg_root#??} ;; esac
[ -d "$pg_root/$pg_id" ] || pg_root=/var/tmp/prefect-gpu-$(id -u)
pg_work=$(cd "$pg_root/$pg_id/work" && pwd -P) || exit 0
[ -n "$(find "$pg_work" ! -user "$(id -u)" 2>/dev/null | head -n 1)" ] || exit 0
sudo -n chown -R "$(id -u):$(id -g)" "$pg_work" 2>/dev/null ||
    $pg_docker run --pull never --rm --network none --user 0 --entrypoint chown --volume "$pg_work:$pg_mount" "$pg_image" \
        -R "$(id -u):$(id -g)" "$pg_mount"
