# shellcheck shell=sh
# What other users of this machine hold, by the processes that will give it back. Their word can only make the machine less free.
# Prints NAME:GPUS for each.
# shellcheck disable=SC2154
others() {
    # shellcheck disable=SC2013 # the words are numbers
    for one in $(grep -lsF -e "$timer_mark" /proc/[0-9]*/cmdline 2>/dev/null); do
        one=${one%/cmdline}
        [ -O "$one" ] && continue
        mark=$(tail -c 5000 "$one/cmdline" 2>/dev/null | tr '\000' '\n' | tail -n 2)
        case $mark in "$timer_mark$line_end"*) mark=${mark#*"$line_end"} ;; *) continue ;; esac
        case ${mark#*:} in '' | *[!A-Za-z0-9,./-]*) continue ;; esac
        is_name "${mark%%:*}" && echo "$mark"
    done
}
