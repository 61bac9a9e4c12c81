#!/bin/sh
# Powers the machine off when its lease is over; run every minute. Given: $end of the lease (epoch), how long it $lasts from the
# order on, and how long the first boot may take at most ($boots), in seconds.
#
# What counts is the uptime, over all boots, for no setting of the clock changes it. A calendar may say 1970 or tomorrow when the
# machine boots, and be set right or wrong at any time. It is asked one thing: how long the machine was away before this boot, which
# no uptime tells; and only once, when the boot is ten minutes old and the network's time had been heard. Of two answers, from the
# last look on and from the order on, the shorter counts; before the first boot it cannot have been longer than that may take.
set -u
state=/var/lib/prefect-gpu/lease
read -r up rest </proc/uptime
up=${up%%.*}
read -r boot </proc/sys/kernel/random/boot_id
today=$(date +%s)
# shellcheck disable=SC2154 # the line before sets them
ordered=$((end - lasts))

# Nothing was looked at yet: the order stands for the last look.
last_boot='' lived=0 away_since=$ordered asks=first last_up=0 last_date=$ordered
is_whole() { case $1 in '' | *[!0-9]* | 0?*) return 1 ;; esac }
if read -r a b c d e f <"$state" && is_whole "$b" && is_whole "$c" && is_whole "$e" && is_whole "$f"; then
    last_boot=$a lived=$b away_since=$c asks=$d last_up=$e last_date=$f
fi 2>/dev/null
if [ "$boot" != "$last_boot" ] && [ -n "$last_boot" ]; then
    lived=$((lived + last_up)) away_since=$last_date asks=later
fi

if [ "$asks" != no ] && [ "$up" -ge 600 ]; then
    away=$((today - up - away_since)) most=$((today - up - ordered - lived))
    [ "$away" -le "$most" ] || away=$most
    # shellcheck disable=SC2154
    [ "$asks" = later ] || [ "$away" -le "$boots" ] || away=$boots
    [ "$away" -le 0 ] || lived=$((lived + away))
    asks=no
fi
mkdir -p "${state%/*}"
echo "$boot $lived $away_since $asks $up $today" >"$state.new" && mv "$state.new" "$state"

# Two seconds are what whole ones may hide. --force: no service of a job can delay it.
[ "$((lived + up + 2))" -lt "$lasts" ] || exec systemctl poweroff --force
