"""Prefect's server for one user of one machine: it hears only who calls it by this machine's own name.

A page of the web can point a name of its own at 127.0.0.1 and would be of the same origin as the server (DNS rebinding); by the
`Host` header it is told apart. The password and the allowed origins are Prefect's own settings.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from prefect.server.api import server
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ["127.0.0.1", "localhost"]


class Unframed:
    """No other page shows this one inside itself, to have its buttons pressed by who sees something else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = "frame-ancestors 'none'"
            await send(message)

        await self.app(scope, receive, sent)


def main(port: str) -> None:
    """Be `prefect server start`, in front of whose application the check stands.

    In front of it, not in it: the server's own actions, automations among them, call the same application without a name of any host.
    """
    make = server.create_app

    def guarded(*given: Any, **named: Any) -> Any:
        app = make(*given, **named)
        # Only the one that is served is made as the final one.
        return TrustedHostMiddleware(Unframed(app), HOSTS, www_redirect=False) if named.get("final") else app

    server.create_app = guarded
    sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
