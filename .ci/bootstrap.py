"""Makes the isolated environment `.venv` from a lock file; needs nothing but Python 3.11 with venv.

    python3 .ci/bootstrap.py requirements.lock          what the flows need
    python3 .ci/bootstrap.py requirements-all.lock      and the SDKs of all providers
    python3 .ci/bootstrap.py requirements-dev.lock      and what the tests need

Standard library only, and syntax that an old Python understands far enough to say that it is too old. pip installs a pinned uv
(.ci/tools.lock), and uv installs the rest: 5 s where pip takes 21. The checkout itself is installed as `prefect_gpu`, served from where it is. The stamp that says "complete" is written last, so an environment that
was interrupted half-way is made again; a lock keeps two makes apart.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(PROJECT, ".venv")
STAMP = os.path.join(VENV, "complete.json")
TOOLS_LOCK = os.path.join(PROJECT, ".ci", "tools.lock")
LOCKS = ("requirements.lock", "requirements-all.lock", "requirements-dev.lock")  # each holds all of the one before it
FOLDERS = ("blocks", "flows", "providers")  # what is imported as prefect_gpu.*
OLDEST = (3, 11)
NO_NETWORK = re.compile(
    r"dns error|failed to lookup|name resolution|Name or service not known|Network is unreachable|NewConnectionError"
    r"|Connection refused|ConnectTimeout|connect error|error sending request|No matching distribution|Connection reset|timed out",
    re.IGNORECASE,
)


class Refusal(Exception):
    """One sentence for the user."""


def main(lock_name):
    if sys.version_info < OLDEST:
        raise Refusal(
            "prefect-gpu needs Python 3.11 or newer, and %s is %d.%d: install a newer one, or name it as in `make PYTHON=python3.12`."
            % (sys.executable, sys.version_info[0], sys.version_info[1])
        )
    if is_complete(lock_name):
        return
    try:
        lock = open(os.path.join(PROJECT, ".venv.lock"), "w")
    except OSError as error:
        raise Refusal("The environment goes to %s, which cannot be written: %s." % (VENV, error.strerror)) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("waiting for another make that is setting up .venv ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_complete(lock_name):  # the other one may have made it
            make(lock_name)


def make(lock_name):
    began = time.monotonic()
    stamp = read_stamp()
    # What was installed once stays: after `make connect` the providers' SDKs, after `make test` its tools.
    lock_name = max(lock_name, stamp.get("lock", lock_name), key=LOCKS.index)
    is_usable = stamp.get("python") == python_identity() and os.path.exists(python_of(VENV))
    say("setting up .venv from %s (%s) ..." % (lock_name, "it changed" if stamp.get("lock") == lock_name else "once"))
    if is_usable:
        write_stamp(dict(stamp, digest="half-made"))
    else:
        shutil.rmtree(VENV, ignore_errors=True)
        make_venv()
    install(lock_name)
    install_project()
    write_stamp({"python": python_identity(), "lock": lock_name, "digest": digest(lock_name)})
    say("set up in %.0f s" % (time.monotonic() - began))


def make_venv():
    result = quietly([sys.executable, "-m", "venv", VENV], "making an empty environment")
    if result.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        if "ensurepip" in result.output:
            raise Refusal(
                "This Python has no venv: install it (Debian and Ubuntu: `apt install python3-venv`) and type the same again."
            )
        raise Refusal("%s cannot make an environment: %s" % (sys.executable, last_line(result.output)))


def install(lock_name):
    python = python_of(VENV)
    pip = [
        python,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
        "--no-cache-dir",
        "-q",
        "--require-hashes",
    ]
    # A few quick retries: without network the answer comes in seconds, not after minutes of back-off.
    result = quietly([*pip, "--retries", "1", "--timeout", "20", "-r", TOOLS_LOCK], "installing the installer (uv)")
    if result.returncode:
        refuse_install(result.output)
    uv = [os.path.join(VENV, "bin", "uv"), "pip", "install", "--python", python, "--no-cache", "--require-hashes"]
    command = [*uv, "--no-deps", "--compile-bytecode", "-r", os.path.join(PROJECT, lock_name)]
    result = quietly(command, "installing %d packages" % count(lock_name), uv_settings(python))
    if result.returncode:
        refuse_install(result.output)


def install_project():
    """`prefect_gpu` is this checkout: its entry points for the environment, its folders for type checkers as .venv/src/prefect_gpu."""
    python = python_of(VENV)
    uv = [os.path.join(VENV, "bin", "uv"), "pip", "install", "--python", python, "--no-cache", "--offline", "--no-deps"]
    result = quietly([*uv, "--no-build-isolation", "--editable", PROJECT], "installing prefect_gpu")
    if result.returncode:
        raise Refusal("prefect_gpu could not be installed: %s" % last_line(result.output))
    links = os.path.join(VENV, "src", "prefect_gpu")
    os.makedirs(links, exist_ok=True)
    for folder in FOLDERS:
        link = os.path.join(links, folder)
        if not os.path.islink(link):
            os.symlink(os.path.join("..", "..", "..", folder), link)


def uv_settings(python):
    """What pip is told of indexes and certificates on this machine, in uv's words: uv reads neither pip.conf nor PIP_*."""
    # Of several indexes pip takes the best match of all; the digests of the lock files say what may be taken.
    environment = dict(os.environ, UV_NO_PROGRESS="1", UV_NO_CONFIG="1", UV_INDEX_STRATEGY="unsafe-best-match")
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    ).stdout.decode(errors="replace")
    for pip_name, uv_name in (
        ("index-url", "UV_DEFAULT_INDEX"),
        ("extra-index-url", "UV_INDEX"),
        ("find-links", "UV_FIND_LINKS"),
        ("cert", "SSL_CERT_FILE"),
        ("proxy", "ALL_PROXY"),
    ):
        match = re.search(r"^(?:global|install|:env:)\.%s='(.*)'$" % pip_name, listed, re.MULTILINE)
        if match:
            environment.setdefault(uv_name, match.group(1))
    return environment


def refuse_install(output):
    if "No space left" in output:
        raise Refusal("The disk is full: .venv needs 400 MB. Make room and type the same again.")
    if NO_NETWORK.search(output):
        raise Refusal(
            "No package index answers: the first `make` needs the network once, to install what the lock files name. "
            "Connect and type the same again."
        )
    raise Refusal("The packages could not be installed: %s" % last_line(output))


class Result:
    def __init__(self, returncode, output):
        self.returncode = returncode
        self.output = output


def quietly(command, what, environment=None):
    """Run a command, keep its output, and say what goes on if it takes more than two seconds."""
    done = threading.Event()
    began = time.monotonic()

    def progress():
        delay = 2.0
        while not done.wait(delay):
            say("  %s ... %.0f s" % (what, time.monotonic() - began))
            delay = 5.0

    teller = threading.Thread(target=progress, daemon=True)
    teller.start()
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=1800,
            check=False,
        )
        return Result(ran.returncode, ran.stdout.decode(errors="replace"))
    except subprocess.TimeoutExpired:
        return Result(1, "%s timed out after half an hour" % what)
    finally:
        done.set()
        teller.join()


def is_complete(lock_name):
    stamp = read_stamp()
    made = stamp.get("lock")
    return (
        made in LOCKS
        and LOCKS.index(made) >= LOCKS.index(lock_name)
        and stamp.get("digest") == digest(made)
        and stamp.get("python") == python_identity()
        and os.path.exists(python_of(VENV))
    )


def read_stamp():
    try:
        with open(STAMP) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def write_stamp(content):
    with open(STAMP + ".new", "w") as file:
        json.dump(content, file)
    os.replace(STAMP + ".new", STAMP)


def python_identity():
    return "%s %s %s" % (os.path.realpath(sys.executable), sys.version, PROJECT)


def python_of(venv):
    return os.path.join(venv, "bin", "python")


def digest(lock_name):
    sha = hashlib.sha256()
    for path in (os.path.join(PROJECT, lock_name), TOOLS_LOCK, os.path.join(PROJECT, "pyproject.toml")):
        with open(path, "rb") as file:
            sha.update(file.read())
    return sha.hexdigest()


def count(lock_name):
    with open(os.path.join(PROJECT, lock_name)) as file:
        return sum(1 for line in file if re.match(r"[A-Za-z0-9].*==", line))


def last_line(output):
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def say(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Refusal as refusal:
        say(str(refusal))
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted: .venv is half-made, and the next make makes it again")
        sys.exit(130)
