# shellcheck shell=sh
# Sends $signal, whose number is $number, to the processes of the job ($token) that handle it: any other would end of it. Their pids on
# stdout.
# shellcheck disable=SC2034,SC2154 # read by the functions; set by whoever calls
signal_job() {
    parent=- # whose children are also this timer's
    members
    for p in $found; do
        caught=
        { while read -r word value; do [ "$word" != SigCgt: ] || caught=$value; done <"/proc/$p/status"; } 2>/dev/null
        # The first 32 signals are in the last eight digits.
        caught=${caught#????????}
        [ -n "$caught" ] && [ $((0x$caught >> (number - 1) & 1)) = 1 ] && kill -s "$signal" "$p" && echo "$p"
    done
}
