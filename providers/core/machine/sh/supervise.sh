# shellcheck shell=sh
# The supervisor of one job: starts it, ends it and all it started, and writes down how it ended.
# $1 directory, $2 id, $3 limit in s, $4 grace in s, $5 client's clock, $6 working directory, $7 wrapper, $8 its clean-up,
# $9 shell | argv; then the command. On stdin the variables of the job, as sh. $signal, $number: what the job is told by, as soon as the
# file $notice says that the machine is taken back; or nothing.
# shellcheck disable=SC2015,SC2034,SC2154 # a failed second command is a failure too; functions read token and parent, and set what is read
cd "$1" || exit 1
dir=$1
token="PREFECT_GPU_JOB=$2:" id=$2 limit=$3 grace=$4 clock=$5 wd=$6 wrap=$7 clean=$8 kind=$9 timer=0
shift 9
parent=$$
variables=$(cat)
setsid=$(command -v setsid)
shell=$(command -v bash || command -v sh)
identify $$
read -r up rest </proc/uptime
# Held as long as this process lives; followers wait for it.
exec 9>lock
command -v flock >/dev/null && flock 9
# Written before the job starts and overwritten at its end: a full disk cannot hide how the job ended.
printf '%-120s\n' reserved >exit.new
# shellcheck disable=SC2154 # identify sets them
echo "$$ $born $boot $clock $up" >state
reason=exited
trap '[ "$reason" != exited ] || reason=timed-out' ALRM
trap '[ "$reason" != exited ] || reason=cancelled' TERM
trap : HUP INT
# The two dashes: a command may begin with one, and would be taken for an option.
[ "$kind" = argv ] || set -- "$shell" -c -- "$1"
[ -z "$wrap" ] || set -- sh -c "$wrap" sh "$@"
(
    trap - ALRM TERM HUP INT
    # With SSH_CLIENT in its environment bash reads ~/.bashrc, which the login shell has done already.
    unset PREFECT_GPU_SUBREAPER SSH_CLIENT SSH2_CLIENT SSH_CONNECTION SSH_TTY
    cd "work/$wd" || { echo "prefect-gpu: the job's directory has no $wd to work in"; exit 127; }
    # The job's variables may have any name: from the eval on this program has none of its own.
    set -- "$dir/home" "$id:" ${setsid:+"$setsid" --} "$@"
    eval "$variables"
    [ -n "${HOME-}" ] && [ -d "$HOME" ] && [ -w "$HOME" ] || { mkdir -p "$1"; export HOME="$1"; }
    # Python keeps 8 KB back when it writes to a file; a log should be read while it is written.
    export PREFECT_GPU_JOB="$2" PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
    shift 2
    exec "$@"
) </dev/null >>log 2>&1 9>&- &
child=$!
(
    trap 'kill $s; exit' TERM
    # Without its supervisor this process has another parent, and the pid may be anybody's.
    # shellcheck disable=SC2086 # the fields of the line
    is_needed() { read -r line </proc/self/stat; set -- ${line##*) }; [ "$2" = $$ ]; }
    uptime
    # shellcheck disable=SC2154 # uptime sets it
    until=$((now + limit))
    # In slices: a signal to a shell that is just forking is lost, and what it should have ended would sleep on for hours. By the
    # time since the machine's start: the calendar may be set, and a machine that slept has lost that time.
    while uptime; [ "$now" -lt "$until" ] && is_needed; do
        left=$((until - now)) slice=30
        # Here, and not by whoever follows the job: the job is told also while nobody does.
        if [ -n "$signal" ]; then
            slice=2
            if [ -s "$notice" ]; then
                signal_job >told
                signal='' slice=30
            fi
        fi
        PREFECT_GPU_TIMER="$id:" sleep $((left < slice ? left : slice)) & s=$!
        wait $s
    done
    # Again and again: a signal between two commands of the shell is seen only at the next one.
    while is_needed && kill -s ALRM $$; do sleep 1; done
) 9>&- &
timer=$!
# How often memory ran out here; after the job's start, which it would hold up.
count_oom_kills
echo "oom_kill $after" >memory 2>/dev/null
code=-
while [ "$reason" = exited ]; do
    wait $child
    code=$?
    [ -d /proc/$child ] || break
done
trap : ALRM TERM
if [ "$reason" = exited ]; then
    # All that is left of the job are children of a child subreaper: only the timer means nothing. Twice, because the list
    # may skip one when another ends meanwhile.
    # shellcheck disable=SC2034 # a count
    for again in 1 2; do
        left=unknown
        { read -r left </proc/$$/task/$$/children; } 2>/dev/null
        [ "$left" = "$timer" ] && [ -n "$PREFECT_GPU_SUBREAPER" ] || { sweep 2; break; }
    done
else
    sweep "$grace"
fi
if [ -n "$clean" ]; then timeout 30 sh -c "$clean" >/dev/null 2>&1; fi
why=-
if [ "$reason" = exited ] && [ "$code" != 0 ]; then
    out_of_memory && why=$lack
fi
read -r up rest </proc/uptime
printf '%-120s\n' "$code $reason $up $why" 1<>exit.new
mv exit.new exit
kill $timer
exit 0
