# shellcheck shell=sh
# Writes the job's output from the byte $first on to stdout until the job has ended, then reports its end to stderr.
# shellcheck disable=SC2154 # set by locate_job and in front of this
[ -e "$dir/claim" ] || { echo "absent" >&2; exit 0; }
tries=0
until alive || [ -e "$dir/exit" ] || [ $tries -ge 250 ]; do
    [ -s "$dir/state" ] && break
    sleep 0.02 || sleep 1
    tries=$((tries + 1))
done
if alive && tail -c 1 --pid=$$ /dev/null 2>/dev/null; then
    # Not the supervisor's own pid: tail takes a zombie for alive. The lock tells the end at once, but not where flock is missing
    # or the file system has no locks.
    {
        trap 'kill $!; exit' TERM
        if command -v flock >/dev/null; then flock -s "$dir/lock" true & wait $!; fi
        trap - TERM
        while [ ! -e "$dir/exit" ] && alive; do sleep 0.1 || sleep 1; done
    } 2>/dev/null &
    watch=$!
    tail -s 0.01 --pid=$watch -c "+$first" -f "$dir/log"
    kill $watch 2>/dev/null
else
    exec 3<"$dir/log"
    tail -c "+$first" <&3
    while alive; do
        cat <&3
        sleep 0.1 || sleep 1
    done
    cat <&3
fi
report
