# shellcheck shell=sh
# One line about the end of the job in $dir, on stderr: code, outcome, the client's clock and the uptime at its start, the uptime
# at its end, bytes of its log, and why.
# shellcheck disable=SC2034,SC2154 # the rest of a line; $dir and what `alive` read
report() {
    code='' reason='' up='' why=- up_then=${up_then:-0}
    if ! { [ -f "$dir/exit" ] && read -r code reason up why <"$dir/exit"; } 2>/dev/null; then
        code=- reason=lost
        read -r up rest </proc/uptime
        read -r boot </proc/sys/kernel/random/boot_id
        if [ ! -s "$dir/state" ]; then why=unstarted
        elif [ -n "$was_boot" ] && [ "$boot" != "$was_boot" ]; then why=restarted
        elif out_of_memory; then why=$lack
        else why=killed; fi
    fi
    # A job that an earlier version started says no reason.
    why=${why%% *} why=${why:--}
    printf '%s %s %s %s %s %s %s\n' "${code:--}" "$reason" "${clock:-0}" "${up_then%% *}" "${up%% *}" \
        "$(wc -c <"$dir/log")" "$why" >&2
}
