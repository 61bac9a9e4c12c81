# shellcheck shell=sh
# Starts the job unless it was started before; prints `started` or `attached`. The supervisor's arguments are "$@"; the functions
# supervisor_text and variables_text, and what asks for a child subreaper in perl and in python3, come before it.
# shellcheck disable=SC2015,SC2154 # a failed second command is a failure too; locate_job and what stands in front set the variables
mkdir -p "$dir/work" && chmod 700 "$dir" || { echo "cannot make $dir" >&2; exit 73; }
if ! (set -C; : >"$dir/claim") 2>/dev/null; then
    [ -e "$dir/claim" ] || { echo "cannot write to $dir" >&2; exit 73; }
    echo attached
    exit 0
fi
supervisor_text >"$dir/supervisor" && : >>"$dir/log" || { rm -f "$dir/claim"; exit 73; }
export PREFECT_GPU_SUBREAPER=
# Through a pipe: secrets stand in no file and no list of processes, and the job's PATH is not the supervisor's.
variables_text | (
    # Whether that was the supervisor: it ends with 0 or by a signal, and what could not become one with another code and no state.
    run() {
        if command -v setsid >/dev/null; then setsid "$@"; else "$@"; fi
        code=$?
        [ $code = 0 ] || { [ $code -ge 128 ] && [ $code -lt 255 ]; } || [ -e "$dir/state" ]
    }
    set -- sh "$dir/supervisor" "$dir" "$id" "$@"
    # One that is broken (PERL5LIB of another perl, a library that is missing) says nothing; to try it first would cost 15 ms.
    command -v perl >/dev/null && run perl -e "$in_perl" "$@" && exit
    command -v python3 >/dev/null && run python3 -ISc "$in_python" "$@" && exit
    run "$@"
) >/dev/null 2>&1 &
echo started
