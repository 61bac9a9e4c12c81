# shellcheck shell=sh
# Which process a number means: a pid may be another's by now, and what a job's directory says may be anybody's words.

# Sets $session, $born and $boot of a living process. A zombie is dead: in a container whose first process reaps nobody it stays
# for ever.
# shellcheck disable=SC2034,SC2086 # read by whoever calls; the fields are split on purpose
identify() {
    line=
    { read -r line <"/proc/$1/stat"; } 2>/dev/null
    set -- ${line##*) }
    [ $# -ge 20 ] && [ "$1" != Z ] || return 1
    session=$4
    shift 19
    born=$1
    read -r boot </proc/sys/kernel/random/boot_id
}

# Whether the supervisor of $dir lives; sets $pid and what its file `state` says. A job may have put anything in the file's place.
# shellcheck disable=SC2034,SC2154 # $dir comes from locate.sh; the fields are read by report.sh
alive() {
    pid=
    [ -f "$dir/state" ] && { read -r pid was_born was_boot clock up_then <"$dir/state"; } 2>/dev/null || return 1
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    identify "$pid" && [ "$born $boot" = "$was_born $was_boot" ]
}

# Its group is the supervisor with its timer, which would outlive it by the job's timeout; the job has a session of its own.
kill_supervisor() { kill -9 "-$pid" 2>/dev/null || kill -s KILL "$pid"; }
