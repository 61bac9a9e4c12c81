"""What a worker starts in place of a flow process: asks the zygote for one, passes signals on, and ends as that ends. Standard library alone."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any


def main() -> None:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(os.environ["CHAOS_ZYGOTE"])
    order = json.dumps({"env": dict(os.environ), "cwd": str(Path.cwd())}).encode()
    descriptors = array.array("i", [1, 2]).tobytes()
    link.sendmsg([len(order).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    link.sendall(order)
    answers = link.makefile("r")
    pid = json.loads(answers.readline())

    def pass_on(number: int, _frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = int(answers.readline() or "1")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
