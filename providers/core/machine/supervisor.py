"""The programs that start, watch and end a job on its machine, put together from sh/*.sh.

A job's directory on the machine, `<root>/<job id>/`:

    work/       the job's directory: files arrive here, the command runs here, outputs are taken from here
    log         stdout and stderr, as they come
    claim       made with O_EXCL: whoever made it starts the job, so it is started at most once
    supervisor  the program sh/supervise.sh
    lock        locked as long as the supervisor lives
    state       pid, start time and boot id of the supervisor; the client's clock and the machine's uptime at the start
    memory      how often the machine had run out of memory when the job started
    told        the processes that were told by a signal that the machine is taken back
    exit        exit code, outcome, uptime at the end, and why; renamed into place, so it is there whole or not at all

What belongs to a job is found by four marks, repeated until nothing is left: a variable in its environment, a parent that
belongs to it, a session that belongs to it, and - for what cleared its environment, left its session and lost its parent - the
supervisor as its new parent: it is a "child subreaper" (prctl, inherited over exec) where perl or python3 is there to ask for it.
"""

from __future__ import annotations

import shlex
import signal

from prefect_gpu.providers.core.contract import NOTICE_FILE
from prefect_gpu.providers.core.machine import scripts

_IN_PERL = (
    "use Config; my $n = {x86_64 => 157, aarch64 => 167}->{(split /-/, $Config{archname})[0]}; "
    '$ENV{PREFECT_GPU_SUBREAPER} = defined $n && syscall($n, 36, 1, 0, 0, 0) == 0 ? 1 : ""; exec @ARGV'
)
_IN_PYTHON = (
    "import ctypes, os, sys; "
    'os.environ["PREFECT_GPU_SUBREAPER"] = "" if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) else "1"; '
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def locate(root: str, job_id: str) -> str:
    """Sets $dir to the job's directory on the machine; its parent is made where it can be."""
    return scripts.assigned(root=root, id=job_id) + scripts.text("locate") + "locate_job\n"


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
    notice_signal: str = "",
) -> str:
    """Starts the job unless it was started before; prints `started` or `attached`."""
    argv = ("shell", command) if isinstance(command, str) else ("argv", *command)
    arguments = [str(limit_s), str(grace_s), f"{clock:.3f}", working_directory, wrap, clean, *argv]
    variables = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in exports.items())
    return (
        locate(root, job_id)
        + scripts.printing("supervisor_text", supervising(notice_signal))
        + scripts.printing("variables_text", variables)
        + scripts.assigned(in_perl=_IN_PERL, in_python=_IN_PYTHON)
        + f"set -- {shlex.join(arguments)}\n"
        + scripts.text("start")
    )


def supervising(notice_signal: str = "") -> str:
    """The supervisor's own program; a function, so that the shell has read it to its end before it does anything.

    `notice_signal`, TERM for example, is what the job is told by that its machine is taken back.
    """
    number = signal.Signals[f"SIG{notice_signal}"].value if notice_signal else 0
    told = scripts.assigned(notice=NOTICE_FILE, signal=notice_signal, number=number)
    program = scripts.text("identity", "sweep", "memory", "signal", "supervise")
    return f'main() {{\n{told}{program}}}\nmain "$@"\n'


def follow_program(root: str, job_id: str, offset: int) -> str:
    """Writes the job's output from a byte offset to stdout until the job has ended, then one line about its end to stderr.

    It ends with the supervisor, so that nothing of it outlives the job, whatever became of the link.
    """
    return (
        locate(root, job_id)
        + scripts.assigned(first=offset + 1)
        + scripts.text("identity", "memory", "report", "follow")
    )


def cancel_program(root: str, job_id: str, *, grace_s: int, clean: str) -> str:
    """Ends the job and all it started; a job that never started will not start any more. One line about its end to stderr."""
    return (
        locate(root, job_id)
        + scripts.assigned(grace=grace_s, clean=clean)
        + scripts.text("identity", "sweep", "memory", "report", "cancel")
    )


def looks_program(patterns: tuple[str, ...]) -> str:
    """One line that is another when files below these names in the job's directory ($dir/work) are."""
    return f"set -- {shlex.join(patterns)}\n" + scripts.text("looks")


def end_all_function(root: str, *, grace_s: int) -> str:
    """The sh function `end_all PREFIX`: ends all jobs whose ids begin so, with their supervisors; their directories stay.

    It takes as long as the slowest of them, its clean-up included: a moment, or up to `grace_s` + 45 s. It sets $root to the place
    where jobs live, and variables of its own: now, timer, token, left, line, dir, pid and others.
    """
    return scripts.assigned(jobs=root, grace=grace_s) + scripts.text("locate", "identity", "sweep", "end_all")
