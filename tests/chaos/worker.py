"""`prefect worker start`, for which the fake clouds are the only providers: it runs hooks itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.chaos import clouds


def main() -> None:
    clouds.install(Path(os.environ["CHAOS_FOLDER"]), int(os.environ["CHAOS_PORT"]))
    from prefect.cli import app

    sys.argv = ["prefect", "worker", "start", *sys.argv[1:]]
    app()


if __name__ == "__main__":
    main()
