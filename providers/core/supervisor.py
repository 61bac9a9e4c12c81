r"""The POSIX sh programs that start, watch and end a job on its machine; they need dash or busybox and /proc, no ps, no Python.

A job's directory on the machine, `<root>/<job id>/`:

    work/       the job's directory: files arrive here, the command runs here, outputs are taken from here
    log         stdout and stderr, as they come
    claim       made with O_EXCL: whoever made it starts the job, so it is started at most once
    supervisor  the program below
    lock        locked as long as the supervisor lives
    state       pid, start time and boot id of the supervisor; the client's clock and the machine's uptime at the start
    exit        exit code, outcome and uptime at the end; renamed into place, so it is there whole or not at all

What belongs to a job is found by four marks, repeated until nothing is left: a variable in its environment, a parent that
belongs to it, a session that belongs to it, and - for what cleared its environment, left its session and lost its parent - the
supervisor as its new parent: it is a "child subreaper" (prctl, inherited over exec) where perl or python3 is there to ask for it.

Longer than 300 lines: the programs share their functions, and half of it is sh.
"""

from __future__ import annotations

import shlex

_CLEAN_S = 30  # for a wrapper's clean-up: a container that is stopped and removed
_SWEEP_S = 8  # beside the grace: KILL until nothing is left, and a moment for the shell

# Reads /proc once; leaves the pids in $found: of the job ($token) and, where $timer_token is set, of the timer that a killed
# supervisor left. $parent: a supervisor whose children all belong to the job, or -
# (never 0: that is the parent of all that came into a container from outside).
# Zombies do not count: they are dead.
_MEMBERS = r"""
members() {
    found=' '
    for f in $(grep -lszF -e "$token" -e "${timer_token:-$token}" /proc/[0-9]*/environ 2>/dev/null); do
        f=${f#/proc/}
        found="$found${f%/environ} "
    done
    marked=$found found=' ' all= sessions=' '
    for f in /proc/[0-9]*/stat; do
        line=
        { read -r line <"$f"; } 2>/dev/null
        p=${line%% *}
        set -- ${line##*) }
        case $1 in Z | X | x | '') continue ;; esac
        case $p in 1 | $$ | "$timer") continue ;; esac
        # Session 0 is whatever came from outside this container; $session is the supervisor's own.
        case $marked in
            *" $p "*) found="$found$p "; case $4 in 0 | "$session") ;; *) sessions="$sessions$4 " ;; esac ;;
            *) all="$all $p:$2:$4" ;;
        esac
    done
    grew=1
    while [ -n "$grew" ]; do
        grew= rest=
        for entry in $all; do
            p=${entry%%:*} s=${entry##*:} entry=${entry#*:}
            case "$found$parent " in *" ${entry%%:*} "*) ;; *)
                case $sessions in *" $s "*) ;; *) rest="$rest $p:$entry"; continue ;; esac ;;
            esac
            found="$found$p " grew=1
            case $s in 0 | "$session") ;; *) sessions="$sessions$s " ;; esac
        done
        all=$rest
    done
    found=${found# }
}
"""

# sudo: a job that uses it owns processes of root that its own user cannot end.
_SWEEP = r"""
uptime() { read -r now rest </proc/uptime; now=${now%.*}; }
send() {
    for p in $found; do
        kill -s "$1" "$p" 2>/dev/null || { [ -d "/proc/$p" ] && sudo -n kill -s "$1" "$p"; } 2>/dev/null
    done
}
sweep() {
    members
    [ -n "$found" ] || return 0
    send TERM
    send CONT
    uptime; until=$((now + $1)) pause=0.02
    while members; [ -n "$found" ] && uptime && [ "$now" -lt "$until" ]; do
        sleep $pause || sleep 1
        case $pause in 0.02) pause=0.05 ;; 0.05) pause=0.1 ;; *) pause=0.2 ;; esac
    done
    until=$((now + 5))
    while [ -n "$found" ] && [ "$now" -lt "$until" ]; do
        send KILL
        sleep 0.02 || sleep 1
        members; uptime
    done
}
"""

_STAT = r"""
# A zombie is dead: in a container whose first process reaps nobody it stays for ever.
identify() {
    line= ; { read -r line <"/proc/$1/stat"; } 2>/dev/null
    set -- ${line##*) }
    [ $# -ge 20 ] && [ "$1" != Z ] || return 1
    session=$4; shift 19
    born=$1; read -r boot </proc/sys/kernel/random/boot_id
}
"""

# $1 directory, $2 id, $3 limit in s, $4 grace in s, $5 client's clock, $6 working directory, $7 wrapper, $8 its clean-up,
# $9 shell | argv; then the command.
_SUPERVISOR = (
    "main() {\n"
    + _MEMBERS
    + _SWEEP
    + _STAT
    + r"""
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
echo "$$ $born $boot $clock $up" >state
reason=exited
trap '[ "$reason" != exited ] || reason=timed-out' ALRM
trap '[ "$reason" != exited ] || reason=cancelled' TERM
trap : HUP INT
[ "$kind" = argv ] || set -- "$shell" -c "$1"
[ -z "$wrap" ] || set -- sh -c "$wrap" sh "$@"
(
    trap - ALRM TERM HUP INT
    # With SSH_CLIENT in its environment bash reads ~/.bashrc, which the login shell has done already.
    unset PREFECT_GPU_SUBREAPER SSH_CLIENT SSH2_CLIENT SSH_CONNECTION SSH_TTY
    cd "work/$wd" || { echo "prefect-gpu: the job's directory has no $wd to work in"; exit 127; }
    # The job's variables may have any name: from the eval on this program has none of its own.
    set -- "$dir/home" "$id:" $setsid "$@"
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
    is_needed() { read -r line </proc/self/stat; set -- ${line##*) }; [ "$2" = $$ ]; }
    # In slices: a signal to a shell that is just forking is lost, and what it should have ended would sleep on for hours.
    left=$limit
    while [ "$left" -gt 0 ] && is_needed; do
        slice=$((left < 30 ? left : 30))
        PREFECT_GPU_TIMER="$id:" sleep $slice & s=$!
        wait $s
        left=$((left - slice))
    done
    # Again and again: a signal between two commands of the shell is seen only at the next one.
    while is_needed && kill -s ALRM $$; do sleep 1; done
) 9>&- &
timer=$!
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
    for again in 1 2; do
        left=unknown
        { read -r left </proc/$$/task/$$/children; } 2>/dev/null
        [ "$left" = "$timer" ] && [ -n "$PREFECT_GPU_SUBREAPER" ] || { sweep 2; break; }
    done
else
    sweep "$grace"
fi
if [ -n "$clean" ]; then timeout """
    + str(_CLEAN_S)
    + r""" sh -c "$clean" >/dev/null 2>&1; fi
read -r up rest </proc/uptime
printf '%-120s\n' "$code $reason $up" 1<>exit.new
mv exit.new exit
kill $timer
exit 0
}
main "$@"
"""
)

_SUBREAPER_PERL = (
    "use Config; my $n = {x86_64 => 157, aarch64 => 167}->{(split /-/, $Config{archname})[0]}; "
    '$ENV{PREFECT_GPU_SUBREAPER} = defined $n && syscall($n, 36, 1, 0, 0, 0) == 0 ? 1 : ""; exec @ARGV'
)
_SUBREAPER_PYTHON = (
    "import ctypes, os, sys; "
    'os.environ["PREFECT_GPU_SUBREAPER"] = "" if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) else "1"; '
    "os.execvp(sys.argv[1], sys.argv[1:])"
)

_LOCATE = r"""
case $root in
    '~'/*) root=${HOME-/nonexistent}/${root#??}
        if ! mkdir -p "$root" 2>/dev/null || ! [ -w "$root" ]; then
            # A home that cannot be written. /var/tmp is everybody's: only a directory of our own counts.
            root=/var/tmp/prefect-gpu-$(id -u)
            mkdir -m 700 "$root" 2>/dev/null
            [ "$(stat -c %u "$root")" = "$(id -u)" ] || { echo "$root belongs to somebody else" >&2; exit 73; }
        fi ;;
esac
dir=$root/$id
"""

# Its group is the supervisor with its timer, which would outlive it by the job's timeout; the job itself has a session of its own.
_ALIVE = r"""
kill_supervisor() { kill -9 "-$pid" 2>/dev/null || kill -s KILL "$pid"; }
alive() {
    pid= ; { read -r pid was_born was_boot clock up_then <"$dir/state"; } 2>/dev/null || return 1
    identify "$pid" && [ "$born $boot" = "$was_born $was_boot" ]
}
"""

_LOCATE_STATE = (
    _STAT
    + _ALIVE
    + r"""
report() {
    { read -r code reason up <"$dir/exit"; } 2>/dev/null || { code= reason=lost; read -r up rest </proc/uptime; }
    printf '%s %s %s %s %s %s\n' "${code:--}" "$reason" "${clock:-0}" "${up_then:-0}" "${up%% *}" "$(wc -c <"$dir/log")" >&2
}
"""
)


def locate(root: str, job_id: str) -> str:
    """Sets $dir to the job's directory on the machine; its parent is made where it can be."""
    return f"root={shlex.quote(root)} id={shlex.quote(job_id)}\n{_LOCATE}"


def start_program(
    root: str,
    job_id: str,
    command: str | tuple[str, ...],
    *,
    exports: dict[str, str],
    limit_s: int,
    grace_s: int,
    clock: float,
    working_directory: str,
    wrap: str,
    clean: str,
) -> str:
    """Starts the job unless it was started before; prints `started` or `attached`."""
    argv = ("shell", command) if isinstance(command, str) else ("argv", *command)
    arguments = [str(limit_s), str(grace_s), f"{clock:.3f}", working_directory, wrap, clean, *argv]
    variables = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items())
    return f"""{locate(root, job_id)}
mkdir -p "$dir/work" && chmod 700 "$dir" || {{ echo "cannot make $dir" >&2; exit 73; }}
if ! (set -C; : >"$dir/claim") 2>/dev/null; then
    [ -e "$dir/claim" ] || {{ echo "cannot write to $dir" >&2; exit 73; }}
    echo attached; exit 0
fi
printf %s {shlex.quote(_SUPERVISOR)} >"$dir/supervisor" && : >>"$dir/log" || {{ rm -f "$dir/claim"; exit 73; }}
export PREFECT_GPU_SUBREAPER=
# Through a pipe: secrets stand in no file and no list of processes, and the job's PATH is not the supervisor's.
printf %s {shlex.quote(variables)} | (
    # Whether that was the supervisor: it ends with 0 or by a signal, and what could not become one with another code and no state.
    run() {{
        if command -v setsid >/dev/null; then setsid "$@"; else "$@"; fi
        code=$?
        [ $code = 0 ] || {{ [ $code -ge 128 ] && [ $code -lt 255 ]; }} || [ -e "$dir/state" ]
    }}
    set -- sh "$dir/supervisor" "$dir" "$id" {shlex.join(arguments)}
    # One that is broken (PERL5LIB of another perl, a library that is missing) says nothing; to try it first would cost 15 ms.
    command -v perl >/dev/null && run perl -e {shlex.quote(_SUBREAPER_PERL)} "$@" && exit
    command -v python3 >/dev/null && run python3 -ISc {shlex.quote(_SUBREAPER_PYTHON)} "$@" && exit
    run "$@"
) >/dev/null 2>&1 &
echo started"""


def follow_program(root: str, job_id: str, offset: int) -> str:
    """Writes the job's output from a byte offset to stdout until the job has ended, then one line about its end to stderr.

    It ends with the supervisor, so that nothing of it outlives the job, whatever became of the link.
    """
    return f"""{locate(root, job_id)}{_LOCATE_STATE}
[ -e "$dir/claim" ] || {{ echo "absent" >&2; exit 0; }}
tries=0
until alive || [ -e "$dir/exit" ] || [ $tries -ge 250 ]; do
    [ -s "$dir/state" ] && break
    sleep 0.02 || sleep 1; tries=$((tries + 1))
done
if alive && tail -c 1 --pid=$$ /dev/null 2>/dev/null; then
    # Not the supervisor's own pid: tail takes a zombie for alive. The lock tells the end at once, but not where flock is missing
    # or the file system has no locks.
    {{
        trap 'kill $!; exit' TERM
        if command -v flock >/dev/null; then flock -s "$dir/lock" true & wait $!; fi
        trap - TERM
        while [ ! -e "$dir/exit" ] && alive; do sleep 0.1 || sleep 1; done
    }} 2>/dev/null &
    watch=$!
    tail -s 0.02 --pid=$watch -c +{offset + 1} -f "$dir/log"
    kill $watch 2>/dev/null
else
    exec 3<"$dir/log"
    tail -c +{offset + 1} <&3
    while alive; do cat <&3; sleep 0.1 || sleep 1; done
    cat <&3
fi
report"""


def cancel_program(root: str, job_id: str, *, grace_s: int, clean: str) -> str:
    """Ends the job and all it started; a job that never started will not start any more. One line about its end to stderr."""
    return f"""{locate(root, job_id)}{_LOCATE_STATE}{_MEMBERS}{_SWEEP}
mkdir -p "$dir" && (set -C; : >"$dir/claim") 2>/dev/null && {{ : >>"$dir/log"; echo '- cancelled 0' >"$dir/exit"; }}
token="PREFECT_GPU_JOB=$id:" timer=- parent=-
tries=0
until [ -e "$dir/state" ] || [ -e "$dir/exit" ] || [ $tries -ge 50 ]; do sleep 0.02 || sleep 1; tries=$((tries + 1)); done
uptime; limit=$((now + {grace_s} + {_SWEEP_S}))
while alive && [ ! -e "$dir/exit" ] && [ "$now" -lt "$limit" ]; do
    kill -s TERM "$pid"
    sleep 0.1 || sleep 1
    uptime
done
if [ ! -e "$dir/exit" ]; then
    alive && kill_supervisor
    identify $$
    timer_token="PREFECT_GPU_TIMER=$id:"
    sweep {grace_s}
    {f"timeout {_CLEAN_S} sh -c {shlex.quote(clean)} >/dev/null 2>&1" if clean else ":"}
    read -r up rest </proc/uptime
    echo "- cancelled $up" >"$dir/exit.cancel" && mv "$dir/exit.cancel" "$dir/exit"
fi
report"""


def end_all_function(root: str, *, grace_s: int) -> str:
    """The sh function `end_all PREFIX`: ends all jobs whose ids begin so, with their supervisors; their directories stay.

    It takes as long as the slowest of them, its clean-up included: a moment, or up to `grace_s` + 45 s. It sets $root to the place
    where jobs live, and variables of its own: now, timer, token, left, line, dir, pid and others.
    """
    return f"""{_STAT}{_MEMBERS}{_SWEEP}
{_ALIVE}
supervised() {{ dir=${{1%/state}}; alive; }}
end_all() {{
id=$1 root={shlex.quote(root)}
{_LOCATE}
# As long as a supervisor may take by itself: its sweep, then its clean-up.
uptime; limit=$((now + {grace_s} + {_SWEEP_S} + {_CLEAN_S})) running=1
while [ -n "$running" ] && [ "$now" -lt "$limit" ]; do
    running=
    for state in "$root/$id"*/state; do supervised "$state" && kill -s TERM "$pid" && running=1; done
    [ -z "$running" ] || sleep 0.1 || sleep 1
    uptime
done
for state in "$root/$id"*/state; do supervised "$state" && kill_supervisor; done
token="PREFECT_GPU_JOB=$id" timer_token="PREFECT_GPU_TIMER=$id" timer=- parent=- session=
sweep {grace_s}
}}
"""
