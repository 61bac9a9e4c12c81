# shellcheck shell=sh
# Whether the kernel ended a process for want of memory since the job in $dir was started, and whose memory it was ($lack).
# A container has a count of its own, and its neighbours' processes are not ours. Version 2 of control groups shows it in each that
# is not the root; version 1 in the root as well, where only a limit tells that this is a container.
# shellcheck disable=SC2034,SC2154 # the word in front of each number, and $lack; $dir is set
count_oom_kills() {
    group=/sys/fs/cgroup lack=container counted=/proc/vmstat limit=
    { read -r limit <"$group/memory/memory.limit_in_bytes"; } 2>/dev/null
    if [ -r "$group/memory.events" ]; then counted=$group/memory.events
    elif [ -n "$limit" ] && [ ${#limit} -lt 17 ]; then counted=$group/memory/memory.oom_control
    else lack=memory; fi
    after=$(grep '^oom_kill ' "$counted" 2>/dev/null)
    after=${after#* }
}
out_of_memory() {
    [ -f "$dir/memory" ] || return 1
    before=''
    { read -r word before <"$dir/memory"; } 2>/dev/null
    count_oom_kills
    case $before$after in '' | *[!0-9]*) return 1 ;; esac
    [ -n "$before" ] && [ -n "$after" ] && [ "$after" -gt "$before" ] 2>/dev/null
}
