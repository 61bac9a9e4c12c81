# shellcheck shell=sh
# Finds and ends everything that belongs to a job, by /proc.

# Leaves the pids in $found: of the job ($token) and, where $timer_token is set, of the timer that a killed supervisor left.
# $parent: a supervisor whose children all belong to the job, or - (never 0: that is the parent of all that came into a container
# from outside). $session: the supervisor's own. Zombies do not count: they are dead.
# shellcheck disable=SC2013,SC2086,SC2154 # names and fields are split on purpose; whoever calls sets the variables
members() {
    found=' '
    for f in $(grep -lszF -e "$token" -e "${timer_token:-$token}" /proc/[0-9]*/environ 2>/dev/null); do
        f=${f#/proc/}
        found="$found${f%/environ} "
    done
    marked=$found found=' ' all='' sessions=' '
    for f in /proc/[0-9]*/stat; do
        line=
        { read -r line <"$f"; } 2>/dev/null
        p=${line%% *}
        set -- ${line##*) }
        case $1 in Z | X | x | '') continue ;; esac
        case $p in 1 | "$$" | "$timer") continue ;; esac
        # Session 0 is whatever came from outside this container.
        case $marked in
            *" $p "*)
                found="$found$p "
                case $4 in 0 | "$session") ;; *) sessions="$sessions$4 " ;; esac
                ;;
            *) all="$all $p:$2:$4" ;;
        esac
    done
    grew=1
    while [ -n "$grew" ]; do
        grew='' rest=''
        for entry in $all; do
            p=${entry%%:*} s=${entry##*:} entry=${entry#*:}
            case "$found$parent " in *" ${entry%%:*} "*) ;; *)
                case $sessions in *" $s "*) ;; *)
                    rest="$rest $p:$entry"
                    continue
                    ;;
                esac
                ;;
            esac
            found="$found$p " grew=1
            case $s in 0 | "$session") ;; *) sessions="$sessions$s " ;; esac
        done
        all=$rest
    done
    found=${found# }
}

# Whole seconds since this machine was started, sleep included: no clock that somebody sets.
# shellcheck disable=SC2034 # the rest of the line
uptime() {
    read -r now rest </proc/uptime
    now=${now%.*}
}

# sudo: a job that uses it owns processes of root that its own user cannot end.
send() {
    for p in $found; do
        kill -s "$1" "$p" 2>/dev/null || { [ -d "/proc/$p" ] && sudo -n kill -s "$1" "$p"; } 2>/dev/null
    done
}

# $1: the grace in s between TERM and KILL.
sweep() {
    members
    [ -n "$found" ] || return 0
    send TERM
    send CONT
    uptime
    until=$((now + $1)) pause=0.02
    while members; [ -n "$found" ] && uptime && [ "$now" -lt "$until" ]; do
        sleep $pause || sleep 1
        case $pause in 0.02) pause=0.05 ;; 0.05) pause=0.1 ;; *) pause=0.2 ;; esac
    done
    until=$((now + 5))
    while [ -n "$found" ] && [ "$now" -lt "$until" ]; do
        send KILL
        sleep 0.02 || sleep 1
        members
        uptime
    done
}
