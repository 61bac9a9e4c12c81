"""Which Prefect server a subcommand works with: the one that is configured, or one of our own, found running or started here.

Nothing here imports Prefect where it can be avoided: the server starts while this process imports it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from prefect_gpu.flows.terminal import api, homes
from prefect_gpu.flows.terminal.daemon import Daemon
from prefect_gpu.flows.terminal.messages import Trouble
from prefect_gpu.flows.terminal.place import Place, entered, in_use, is_free, starting
from prefect_gpu.providers.core.typed import typed

if TYPE_CHECKING:
    from collections.abc import Generator

# Without the first two a watched run (`prefect deployment run --watch`) shows no output.
STREAMING: Final = {
    "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
    "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
}


@contextlib.contextmanager
def reached(*, kept: bool, configured_only: bool = False) -> Generator[Place]:
    """The server that the environment or the Prefect profile names, else one of our own: running, or started here.

    Sets this process's environment accordingly, and stops at the end what nobody needs any more.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")  # a newcomer's first command tells nobody
    os.environ.setdefault("PREFECT_CLI_PROMPT", "false")
    home = homes.found()
    running = Daemon("server", home).find()
    url, named_by = configured()
    if url is not None and (url == running.url if running else _was_ours(url)):
        url = None  # by what `make up` printed
    if url is None:
        if configured_only and not (running and running.kept):
            raise Trouble(
                "Set PREFECT_API_URL to the server that shall get the deployments, or choose a Prefect profile that names it; "
                f"`{typed('up')}` serves one of your own."
            )
        with _own(home, kept=kept) as place, entered(place):
            yield place
        return
    if not os.access(os.environ.get("PREFECT_HOME", Path.home()), os.W_OK):
        api.use(PREFECT_HOME=str(home))
    place = Place(url, home, is_own=False, named_by=named_by)
    with starting(place.folder):
        if is_free(place.folder):
            _stop_what_nobody_keeps(place)
        place.users = in_use(place.folder)
    with entered(place):
        yield place


@contextlib.contextmanager
def _own(home: Path, *, kept: bool) -> Generator[Place]:
    place = Place("", home, is_own=True)
    with starting(home):
        if is_free(home):
            _stop_what_nobody_keeps(place)  # of a command that was killed
        place.users = in_use(home)
        place.password = homes.password(home)
        running = Daemon("server", home).find()
        place.api_url = running.url if running else f"http://127.0.0.1:{free_port(4200 if kept else 0)}/api"
        place.needed.append(Daemon("server", home))
        settings = {"PREFECT_HOME": str(home), api.URL: place.api_url, api.PASSWORD: place.password}
        api.use(**settings)
        if running is None:
            _start_server(place)
    yield place


def _stop_what_nobody_keeps(place: Place) -> None:
    for daemon in place.daemons:
        found = daemon.find()
        if found is not None and not found.kept:
            daemon.stop()


def configured() -> tuple[str | None, str]:
    """The address of the server that the user configured, and what names it; None where there is none.

    An address that cannot be meant is refused with the one that may be.
    """
    named_by = api.URL
    if api.URL in os.environ:
        url = os.environ[api.URL] or None  # empty: a server of one's own, whatever a profile says
    elif _has_settings():
        from prefect.context import get_settings_context

        context = get_settings_context()
        url = context.settings.api.url
        named_by = f"{api.URL} of the Prefect profile {context.profile.name!r}"
    else:
        url = None
    if url is None:
        return None, named_by
    if "://" not in url:
        raise Trouble(f"{named_by} is {url}, which is not the address of a server: did you mean {api.meant(url)}?")
    return url.rstrip("/"), named_by


def _was_ours(url: str) -> bool:
    """Whether it is the address of a server that `make up` started and `make down` stopped: a shell may still have it."""
    host = urlsplit(url).hostname
    return host == "127.0.0.1" and os.environ.get(api.PASSWORD, "").startswith(homes.OURS)


def _has_settings() -> bool:
    """Whether a file is there in which Prefect looks for settings. Importing Prefect only to hear that there is none takes a second."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect")
    with contextlib.suppress(RuntimeError):
        home = home.expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    if any(path.is_file() for path in (profiles, Path(".env"), Path("prefect.toml"))):
        return True
    with contextlib.suppress(OSError):
        return "[tool.prefect" in Path("pyproject.toml").read_text(errors="replace")
    return False


def _start_server(place: Place) -> None:
    port = place.api_url.removesuffix("/api").rpartition(":")[2]
    origins = ",".join(f"http://{host}:{port}" for host in ("127.0.0.1", "localhost"))
    environment = {
        **os.environ,
        **STREAMING,
        "PREFECT_SERVER_API_AUTH_STRING": place.password or "",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": origins,  # Prefect's default lets every web page ask
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # its telemetry breaks first starts without network
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_UI_API_URL": place.api_url,  # without it the UI on another port than 4200 asks port 4200
        "PYTHONUNBUFFERED": "1",
    }
    daemon = Daemon("server", place.home)
    place.started.append(daemon)
    arguments = ["-m", "prefect_gpu.flows.terminal.own_server", port]
    place.server = daemon.start(arguments, environment, kept=False, url=place.api_url)


def free_port(wished: int) -> int:
    """The wished port if nobody has it, else any free one."""
    for port in (wished, 0):
        with socket.socket(socket.AF_INET) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise Trouble("No port is free on 127.0.0.1.")
