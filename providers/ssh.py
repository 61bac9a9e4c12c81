r"""A team's own machines, reached by SSH: each, or each GPU slice of it, is lent to one job at a time by a claim on the machine itself.

Nothing is billed; a price in the block ranks them among rented ones. Longer than 300 lines because what runs on the machines stands
here too. On a machine:

    /var/tmp/prefect-gpu-claims/slot.<slot>     one line: name, deadline (epoch of its clock), start, user, GPUs
    /var/tmp/prefect-gpu-claims/ending.<name>   the claim is being given back
    ~/.ssh/authorized_keys                      one line more, its comment is the name
    ~/.prefect-gpu/<name>.<try>/                jobs (jobs.py)
    a process with PREFECT_GPU_LEASE=<name>:    gives the claim back at its deadline

All that changes claims or keys holds a lock which the kernel frees when its holder dies. A machine's clock decides about its
claims; a deadline arrives there as "so many seconds from now".
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import ClassVar, Final, NamedTuple, TypeVar

from blocks.ssh import SshHost, SshJumpHost, SshMachines
from providers.core import machine_check, matching
from providers.core.contract import Billing, Capabilities, Connection, Provider
from providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InvalidRequest,
    LinkLost,
    LoginRefused,
    NoCapacity,
    NotFound,
    ProviderError,
    Transient,
    Unconfirmed,
    Unsupported,
)
from providers.core.first_use import FirstUse
from providers.core.images import NAME_LABEL
from providers.core.jobs import DEFAULT_ROOT
from providers.core.keys import fingerprint
from providers.core.library import TaskLibrary
from providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    KeyPair,
    LaunchSpec,
    Leftover,
    Listing,
    Offer,
    Requirements,
    Spot,
    SshEndpoint,
    SshJump,
    Unread,
    utc_now,
)
from providers.core.shell import Finished, run_script
from providers.core.supervisor import end_all_function, locate

T = TypeVar("T")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
_GRACE_S: Final = 2  # between TERM and KILL for what a lease leaves
_WHOLE: Final = "all"
_ARCHITECTURES: Final = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}


class HostDown(NoCapacity):
    """One machine does not answer, or not as it should; the others may."""

    short = "host down"


class InUse(NoCapacity):
    """Somebody else has it."""

    short = "in use"


# --- what runs on the machine -----------------------------------------------------------------------------------------

_CLAIMS = r"""
claims=/var/tmp/prefect-gpu-claims
umask 022
lock() {
    [ -d "$claims" ] || mkdir -m 1777 "$claims" 2>/dev/null
    [ -e "$claims/lock" ] || (umask 0; : >>"$claims/lock") 2>/dev/null
    exec 9<"$claims/lock" || { echo "cannot write to $claims" >&2; exit 73; }
    if command -v flock >/dev/null; then flock -w 30 9
    elif command -v perl >/dev/null; then perl -e 'alarm 30; open F, "<&=9" and flock F, 2 or exit 1'
    elif command -v python3 >/dev/null; then python3 -c 'import fcntl, signal; signal.alarm(30); fcntl.flock(9, 2)'
    else echo "neither flock nor perl nor python3 is installed" >&2; exit 69; fi ||
        { echo "its claims are locked for 30 s already" >&2; exit 75; }
}
unlock() { exec 9<&-; }
# The claim of a name: $claim, and its fields.
find_claim() {
    for claim in "$claims"/slot.*; do
        read_claim "$claim" && [ "$c_name" = "$1" ] && return
    done
    return 1
}
# Anybody may write there, so what does not look like a claim is none.
read_claim() {
    c_name= ; { read -r c_name c_deadline c_created c_user c_gpus rest <"$1"; } 2>/dev/null || return 1
    case $c_name in '' | *[!a-z0-9-]*) return 1 ;; esac
    case $c_deadline$c_created in '' | *[!0-9]*) return 1 ;; esac
    [ -n "$c_gpus" ]
}
# Whole or not at all, and with the mode that it has: who loses this file loses the machine.
without_key() {
    keys=$HOME/.ssh/authorized_keys
    grep -qF " $1" "$keys" 2>/dev/null || return 0
    keys=$(readlink -f "$keys")
    cp -p "$keys" "$keys.$1" && { grep -vF " $1" "$keys" >"$keys.$1" || [ $? = 1 ]; } && mv "$keys.$1" "$keys"
}
with_key() {
    keys=$HOME/.ssh/authorized_keys
    grep -qF " $1" "$keys" 2>/dev/null && return
    (umask 077; mkdir -p "$HOME/.ssh"; [ ! -s "$keys" ] || [ -z "$(tail -c 1 "$keys")" ] || echo >>"$keys"; printf '%s %s\n' "$2" "$1" >>"$keys")
}
timers() { grep -lsF -e "PREFECT_GPU_LEASE=$1:" /proc/[0-9]*/environ 2>/dev/null; }
"""

# Everything of a name but its claim, which goes last: until then the machine is not free.
_FORGET = (
    end_all_function(DEFAULT_ROOT, grace_s=_GRACE_S)
    + rf"""
forget() {{
    end_all "$1"
    if command -v docker >/dev/null; then
        for docker in docker 'sudo -n docker'; do
            left=$(timeout 20 $docker ps --all --quiet --filter "label={NAME_LABEL}=$id" 2>/dev/null) || continue
            [ -z "$left" ] || timeout 60 $docker rm --force --volumes $left >/dev/null 2>&1
            break
        done
    fi
    for old in "$root/$id".*; do
        [ -e "$old" ] || continue
        # What a job made read-only, as Go's module cache is, may be its own all the same.
        rm -rf "$old" 2>/dev/null || {{ chmod -R u+rwX "$old"; rm -rf "$old"; }} 2>/dev/null || sudo -n rm -rf "$old" 2>/dev/null
    done
    for process in $(timers "$id"); do
        process=${{process#/proc/}} process=${{process%/environ}}
        [ "$process" = $$ ] || kill -s KILL "$process" 2>/dev/null
    done
    for old in "$root/$id".*; do [ ! -e "$old" ] || return 1; done
}}
"""
)

# Ends a claim without holding up others; its own process, so that it ends whatever becomes of the link.
_RELEASE = (
    _CLAIMS
    + _FORGET
    + r"""
release() {
    lock; : >"$claims/ending.$1"; without_key "$1"; unlock
    forget "$1" || return
    lock
    find_claim "$1" && rm -f "$claim"
    rm -f "$claims/ending.$1"
    unlock
}
"""
)

_TIMER = (
    _RELEASE
    + r"""
name=$1
while now=$(date +%s); find_claim "$name" && [ "$now" -lt "$c_deadline" ]; do
    left=$((c_deadline - now))
    sleep $((left < 10 ? left : 10))
done
unset PREFECT_GPU_LEASE
find_claim "$name" && release "$name"
"""
)

_DETACHED = "</dev/null >/dev/null 2>&1 9<&- &"

# In: $name, $slot, $gpus, $seconds, $key, $watch. Out: `claimed DEADLINE CREATED SLOT GPUS`, or `taken NAME DEADLINE`.
_CLAIM = (
    _CLAIMS
    + _FORGET
    + r"""
overlaps() {
    [ "$1" = all ] || [ "$2" = all ] && return
    IFS=,
    for device in $1; do case ",$2," in *",$device,"*) unset IFS; return 0 ;; esac; done
    unset IFS
    return 1
}
lock
[ ! -e "$claims/ending.$name" ] || { echo "$name is being given back" >&2; exit 65; }
if ! find_claim "$name"; then
    today=$(date +%s)
    for claim in "$claims"/slot.*; do
        read_claim "$claim" && overlaps "$gpus" "$c_gpus" || continue
        [ "$c_deadline" -le "$today" ] || { echo "taken $c_name $c_deadline"; exit 0; }
        # Past its deadline: what its owner left ends first.
        stale=$claim old_name=$c_name
        without_key "$old_name" && forget "$old_name" && rm -f "$stale" "$claims/ending.$old_name" ||
            { echo "the claim of $old_name is past its deadline and what it left cannot be removed" >&2; exit 74; }
        echo "ended $old_name"
    done
    # A power cut leaves a file without a line in it.
    read_claim "$claims/slot.$slot" || rm -f "$claims/slot.$slot" ||
        { echo "$claims/slot.$slot is no claim of anybody: remove it" >&2; exit 73; }
    printf '%s %s %s %s %s\n' "$name" $((today + seconds)) "$today" "$(id -un)" "$gpus" >"$claims/new.$$" &&
        ln "$claims/new.$$" "$claims/slot.$slot" || { rm -f "$claims/new.$$"; echo "cannot write to $claims" >&2; exit 73; }
    rm -f "$claims/new.$$"
    find_claim "$name"
    with_key "$name" "$key" || { rm -f "$claim"; echo "cannot write to $keys" >&2; exit 73; }
fi
with_key "$name" "$key"
deadline=$c_deadline created=$c_created slot=${claim##*/slot.} gpus=$c_gpus
if [ -z "$(timers "$name")" ]; then
    if command -v setsid >/dev/null; then detach=setsid; else detach=; fi
    PREFECT_GPU_LEASE="$name:" $detach sh -c "$watch" sh "$name" """
    + _DETACHED
    + r"""
fi
echo "claimed $deadline $created $slot $gpus"
"""
)

# In: $name. Out: `gone`, or `ending` where it takes longer than a moment.
_GIVE_BACK = (
    _CLAIMS
    + r"""
here() {
    find_claim "$name" || [ -e "$claims/ending.$name" ] || grep -qsF " $name" "$HOME/.ssh/authorized_keys" && return
    for old in "$root/$name".*; do [ ! -e "$old" ] || return 0; done
    return 1
}
"""
    + locate(DEFAULT_ROOT, "none")
    + r"""
here || { echo gone; exit 0; }
lock; : >"$claims/ending.$name"; unlock
if command -v setsid >/dev/null; then detach=setsid; else detach=; fi
$detach sh -c "$release" sh "$name" """
    + _DETACHED
    + r"""
tries=0
while [ -e "$claims/ending.$name" ] && [ $tries -lt 20 ]; do sleep 0.05 || sleep 1; tries=$((tries + 1)); done
if here; then echo ending; else echo gone; fi
"""
)

# A claim whose answer was lost may still be on its way.
_SETTLED = _CLAIMS + "lock\nunlock\n"

# Out: `claim SLOT NAME DEADLINE CREATED USER GPUS`, `ending NAME`, `left KIND NAME`, `now EPOCH`.
_SURVEY = (
    _CLAIMS
    + locate(DEFAULT_ROOT, "none")
    + rf"""
for claim in "$claims"/slot.*; do
    read_claim "$claim" && echo "claim ${{claim##*/slot.}} $c_name $c_deadline $c_created $c_user $c_gpus"
done
for ending in "$claims"/ending.*; do [ ! -e "$ending" ] || echo "ending ${{ending##*/ending.}}"; done
sed -n 's/^.* \(pg-[a-z0-9]*\)$/left key \1/p' "$HOME/.ssh/authorized_keys" 2>/dev/null
for old in "$root"/pg-*; do
    [ -e "$old" ] || continue
    old=${{old##*/}}
    echo "left directory ${{old%%.*}}"
done
! command -v docker >/dev/null ||
    timeout 5 docker ps --all --filter 'label={NAME_LABEL}' --format 'left container {{{{.Label "{NAME_LABEL}"}}}}' 2>/dev/null
date +'now %s'
"""
)

_PROBE = (
    _SURVEY
    + r"""
echo "cores $(nproc 2>/dev/null || grep -c '^processor' /proc/cpuinfo)"
sed -n 's/^MemTotal: *\([0-9]*\) kB/memory \1/p' /proc/meminfo
df -Pk "$root" 2>/dev/null | awk 'NR == 2 { print "disk", $4 }'
echo "arch $(uname -m)"
"""
    + machine_check.GPUS
)


class _Claim(NamedTuple):
    slot: str
    name: str
    deadline: datetime
    created: datetime
    gpus: str


class _Survey(NamedTuple):
    """What one machine said."""

    text: str
    claims: tuple[_Claim, ...]
    ending: frozenset[str]
    left: dict[str, str]  # name to kind
    now: datetime


class Ssh(Provider[SshMachines]):
    """Drives machines that a team owns."""

    name: ClassVar[str] = "ssh"
    capabilities: ClassVar[Capabilities] = Capabilities(
        create_repeatable="zone",
        listing_lag_s=0,
        not_found_proves_absence=True,
        self_ends="guest",
        images="docker",
        host_key="first_use",  # where the block knows the key, the endpoint carries it and no other is accepted
        needs_catalog=False,
        boot_deadline_s=120,
        billing=Billing(starts="running", step_s=1, minimum_s=0),
    )

    def __init__(self, credentials: SshMachines) -> None:
        super().__init__(credentials)
        self._first_use = FirstUse()

    def account_id(self) -> str:
        return "own-machines"  # a claim's scope is its machine; machines may come and go meanwhile

    def missing_rights(self) -> list[str]:
        missing: list[str] = []
        answers = self._everywhere(lambda host: self._execute(host, _CLAIMS + "lock\nunlock\n:"))
        for host, answer in answers:
            if isinstance(answer, ProviderError):
                missing.append(f"{host.name}: {answer.message}")
            elif answer.exit_code != 0:
                missing.append(f"{host.name}: {answer.stderr.strip()}")
        if all(isinstance(answer, AuthFailed) for _, answer in answers):
            raise AuthFailed("; ".join(missing))
        return missing

    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        if requirements.spot is Spot.SPOT:
            return []
        answers = self._everywhere(lambda host: self._survey(host, _PROBE, timeout_s=60.0))
        refused = [f"{host.name}: {answer.message}" for host, answer in answers if isinstance(answer, AuthFailed)]
        if len(refused) == len(answers):
            raise AuthFailed("; ".join(refused))
        offers: list[Offer] = []
        for host, answer in answers:
            if isinstance(answer, ProviderError):
                down = _offer(host, None).model_copy(
                    update={"availability": Availability.UNAVAILABLE, "unavailable_because": _plain(answer)}
                )
                # What it has is not known, so only what is known can rule it out.
                known = requirements.model_copy(
                    update={
                        "gpu": (),
                        "cpu": None,
                        "memory_gb": None,
                        "gpu_vendor": None,
                        "min_cuda": None,
                        "min_compute_capability": None,
                    }
                )
                offers += [down] if matching.fits(down, known) else []
            else:
                offers += [offer for offer in self._offers(host, answer) if matching.fits(offer, requirements)]
        return sorted(offers, key=lambda offer: offer.availability is Availability.UNAVAILABLE)

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        if offer.spot:
            raise Unsupported("own machines are not interrupted: there is no spot")
        host = self._host(offer.zone or "")
        gpus = str(offer.raw.get("gpus", _WHOLE))
        seconds = int((spec.deadline - utc_now()).total_seconds())
        if seconds <= 0:
            raise InvalidRequest(f"the lease of {spec.name} is over already")
        script = (
            _assigned(
                name=_checked_name(spec.name),
                slot=_slot(gpus),
                gpus=gpus,
                seconds=str(seconds),
                key=spec.client_public_key,
                watch=_TIMER,
            )
            + _CLAIM
        )
        try:
            connection = self._connect(host)
        except (AuthFailed, InvalidRequest):
            raise
        except ProviderError as down:
            raise HostDown(_down(host, down)) from down
        with closing(connection):
            try:
                done = run_script(connection, script, timeout_s=90.0)
            except LinkLost as lost:
                raise Unconfirmed(f"the link to {host.name} broke while it was claimed") from lost
        answer = done.stdout.decode(errors="replace").strip().rpartition("\n")[2].split()
        match answer:
            case ["claimed", deadline, created, slot, held]:
                claim = _Claim(slot, spec.name, _time(deadline), _time(created), held)
                return self._instance(host, claim, is_ending=False)
            case ["taken", other, until]:
                raise InUse(f"{host.name} is in use by {other} until {_time(until):%Y-%m-%d %H:%M} UTC")
            case _:
                raise InstanceFailed(
                    f"{host.name} cannot be claimed: {done.stderr.strip() or f'exit {done.exit_code}'}"
                )

    def get_instance(self, instance_id: str) -> Instance:
        host, name = self._located(instance_id)
        survey = self._survey(host, _SETTLED + _SURVEY)
        for claim in survey.claims:
            if claim.name == name:
                return self._instance(host, claim, is_ending=name in survey.ending)
        raise NotFound(f"{host.name} has no claim of {name}")

    def list_instances(self, prefix: str) -> Listing:
        instances: list[Instance] = []
        leftovers: list[Leftover] = []
        unread: list[Unread] = []
        for host, answer in self._everywhere(lambda host: self._survey(host, _SETTLED + _SURVEY)):
            if isinstance(answer, ProviderError):
                unread.append(Unread(scope=host.name, reason=_plain(answer)))
                continue
            held = [claim for claim in answer.claims if claim.name.startswith(prefix)]
            instances += [self._instance(host, claim, is_ending=claim.name in answer.ending) for claim in held]
            claimed = {claim.name for claim in answer.claims}
            leftovers += [
                Leftover(id=f"{host.name}/{name}", kind=kind, name=name, region=host.region)
                for name, kind in answer.left.items()
                if name.startswith(prefix) and name not in claimed
            ]
        return Listing(instances=tuple(instances), leftovers=tuple(leftovers), incomplete=tuple(unread))

    def terminate_instance(self, instance_id: str) -> None:
        host, name = self._located(instance_id)
        release = _RELEASE + '\nrelease "$1"'
        done = self._execute(host, _assigned(name=name, release=release) + _GIVE_BACK)
        if done.exit_code != 0 or done.stdout.split()[-1:] not in ([b"gone"], [b"ending"]):
            raise Transient(f"{host.name} did not give back {name}: {done.stderr.strip() or f'exit {done.exit_code}'}")

    # --- ways in ------------------------------------------------------------------------------------------------------

    def _host(self, name: str) -> SshHost:
        for host in self.credentials.hosts:
            if host.name == name:
                return host
        raise InvalidRequest(
            f"no machine of the block is called {name!r}: put it back, so that what it holds can be given back"
        )

    def _located(self, instance_id: str) -> tuple[SshHost, str]:
        host, _, name = instance_id.partition("/")
        return self._host(host), _checked_name(name)

    def _connect(self, host: SshHost) -> Connection:
        key = self.credentials.key(host.key)
        if key is None:
            raise AuthFailed(f"no private key logs in to {host.name}: give the block one")
        try:
            return self._first_use.connect(
                host.name,
                self._endpoint(host),
                KeyPair(private=key, public=""),
                timeout_s=self.credentials.timeout_s,
            )
        except LoginRefused as refused:  # no boot to wait for: the machine is up and does not know the key
            raise AuthFailed(refused.message) from refused

    def _endpoint(self, host: SshHost) -> SshEndpoint:
        jump = host.jump or self.credentials.jump
        return SshEndpoint(
            host=host.address,
            port=host.port,
            user=host.user,
            host_key=host.host_key,
            jump=self._jump(jump) if jump else None,
        )

    def _jump(self, jump: SshJumpHost) -> SshJump:
        key = self.credentials.key(jump.key)
        if key is None:
            raise AuthFailed(f"no private key logs in to the jump host {jump.address}: give it one")
        return SshJump(host=jump.address, port=jump.port, user=jump.user, private_key=key, host_key=jump.host_key)

    def _execute(self, host: SshHost, script: str, *, timeout_s: float = 40.0) -> Finished:
        try:
            connection = self._connect(host)
        except HostKeyMismatch:
            raise
        except Transient as down:
            raise Transient(_down(host, down)) from down
        with closing(connection):
            try:
                return run_script(connection, script, timeout_s=timeout_s)
            except LinkLost as lost:
                raise Transient(f"the link to {host.name} broke: {lost.message}") from lost

    def _survey(self, host: SshHost, script: str, *, timeout_s: float = 40.0) -> _Survey:
        done = self._execute(host, script, timeout_s=timeout_s)
        text = done.stdout.decode(errors="replace")
        claims: list[_Claim] = []
        ending: set[str] = set()
        left: dict[str, str] = {}
        now: datetime | None = None
        for line in text.splitlines():
            match line.split():
                case ["claim", slot, name, deadline, created, _user, gpus]:
                    claims.append(_Claim(slot, name, _time(deadline), _time(created), gpus))
                case ["ending", name]:
                    ending.add(name)
                case ["left", kind, name]:
                    left.setdefault(name, kind)
                case ["now", epoch]:
                    now = _time(epoch)
                case _:
                    pass
        if now is None:  # the script did not come to its end: what it told is not all
            raise Transient(
                f"{host.name} did not tell its claims: {done.stderr.strip()[-200:] or f'exit {done.exit_code}'}"
            )
        left |= dict.fromkeys(ending, "claim")
        return _Survey(text, tuple(claims), frozenset(ending), left, now)

    def _everywhere(self, ask: Callable[[SshHost], T]) -> list[tuple[SshHost, T | ProviderError]]:
        def answer(host: SshHost) -> T | ProviderError:
            try:
                return ask(host)
            except ProviderError as failure:
                return failure
            except Exception as bug:  # noqa: BLE001 - one machine's oddity is no reason not to see the others
                return Transient(f"{host.name} cannot be asked: {type(bug).__name__}: {bug}")

        hosts = self.credentials.hosts
        with ThreadPoolExecutor(min(32, len(hosts)), thread_name_prefix="prefect-gpu ssh") as pool:
            return list(zip(hosts, pool.map(answer, hosts), strict=True))

    # --- what comes of it ---------------------------------------------------------------------------------------------

    def _offers(self, host: SshHost, survey: _Survey) -> Iterator[Offer]:
        found = machine_check.parse_gpus(survey.text)
        facts = dict(line.split(" ", 1) for line in survey.text.splitlines() if " " in line)
        shares = max(1, len(host.gpu_slices))
        pinned = self._first_use.pinned(host.name)
        for gpus in host.gpu_slices or (_WHOLE,):
            visible = found.visible(None if gpus == _WHOLE else gpus)
            first = visible[0] if visible else None
            holder = next(
                (one for one in survey.claims if _overlap(one.gpus, gpus) and one.deadline > survey.now), None
            )
            because = f"in use by {holder.name} until {holder.deadline:%Y-%m-%d %H:%M} UTC" if holder else None
            if gpus != _WHOLE and len(visible) < len(gpus.split(",")):
                because = (
                    because
                    or f"of the slice {gpus} {len(visible)} GPUs answer: {found.trouble or 'the others are not there'}"
                )
            raw = {"gpus": gpus, "labels": dict(host.labels)}
            if pinned and not host.host_key:
                raw["host_key_on_first_use"] = fingerprint(pinned)
            yield _offer(host, None if gpus == _WHOLE else gpus).model_copy(
                update={
                    "cpu": float(facts["cores"]) / shares if facts.get("cores", "").isdecimal() else None,
                    "memory_gb": _gb(facts.get("memory"), shares),
                    "disk_gb": _gb(facts.get("disk"), 1),
                    "arch": _ARCHITECTURES.get(facts.get("arch", ""), facts.get("arch")),
                    "gpu_name": (first.name or first.model) if first else None,
                    "gpu_count": len(visible),
                    "gpu_memory_gb": first.memory_gb if first else None,
                    "gpu_vendor": first.vendor if first else None,
                    "availability": Availability.UNAVAILABLE if because else Availability.AVAILABLE,
                    "unavailable_because": because,
                    "raw": raw,
                }
            )

    def _instance(self, host: SshHost, claim: _Claim, *, is_ending: bool) -> Instance:
        env: dict[str, str] = {}
        if claim.gpus != _WHOLE:
            env = {
                "CUDA_VISIBLE_DEVICES": claim.gpus
            }  # AMD's HIP reads it too, and a second variable would count twice
        return Instance(
            id=f"{host.name}/{claim.name}",
            name=claim.name,
            provider=self.name,
            state=InstanceState.TERMINATING if is_ending else InstanceState.RUNNING,
            region=host.region,
            zone=host.name,
            created_at=claim.created,
            ssh=self._endpoint(host),
            price=host.price,
            env=env,
        )


def _offer(host: SshHost, gpus: str | None) -> Offer:
    return Offer(
        provider=Ssh.name,
        instance_type=f"{host.name}:{gpus}" if gpus else host.name,
        region=host.region,
        zone=host.name,
        country=host.country,
        price=host.price,
    )


def _overlap(one: str, other: str) -> bool:
    return _WHOLE in (one, other) or bool(set(one.split(",")) & set(other.split(",")))


def _slot(gpus: str) -> str:
    return re.sub(r"[^A-Za-z0-9,.-]", "-", gpus)


def _gb(kilobytes: str | None, shares: int) -> float | None:
    return round(int(kilobytes) / 2**20 / shares, 1) if kilobytes and kilobytes.isdecimal() else None


def _time(epoch: str) -> datetime:
    return datetime.fromtimestamp(int(epoch), UTC)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise NotFound(f"{name!r} is no name of a lease")
    return name


def _assigned(**variables: str) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _plain(failure: ProviderError) -> str:
    return re.sub(r"\[Errno -?\d+\] ", "", failure.message)


def _down(host: SshHost, failure: ProviderError) -> str:
    return f"{host.name} is out of reach: {_plain(failure)}"


tasks = TaskLibrary(Ssh, SshMachines)
