"""This machine: each instance is a process tree with a directory and an SSH server on 127.0.0.1 of its own. Free of charge.

What needs no account, and what a newcomer sees first: everything after `create` is the way that cloud instances go. Instances are
found under the user's home by every process of the user (and under /tmp, where the home cannot be written); one that was made on
another host that shares the home is unread, never absent. Linux only: how an instance's processes are found and ended is Linux's.
"""

from __future__ import annotations

import errno
import os
import platform
import pwd
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider
from prefect_gpu.providers.core.errors import (
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    Transient,
    Unsupported,
)
from prefect_gpu.providers.core.models import (
    Instance,
    InstanceState,
    LaunchSpec,
    Leftover,
    Listing,
    Offer,
    SshEndpoint,
    Unread,
)
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.local import directory, give_back, listing, offers, order

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}


class Local(Provider[None]):
    """Rents out this machine to itself."""

    name: ClassVar[str] = "local"
    capabilities: ClassVar[Capabilities] = Capabilities(
        create_repeatable="account",
        listing_lag_s=0,
        not_found_proves_absence=True,
        self_ends="guest",
        needs_catalog=False,
        sold_out_s=0,  # own machines: free again as soon as whoever has them is done
        runs_on_worker=True,
        boot_deadline_s=60,
        billing=Billing(step_s=1, minimum_s=0),
    )

    def __init__(
        self, credentials: None = None, *, roots: Sequence[Path] | None = None, tools: str | None = None
    ) -> None:
        """`roots` are the directories that may hold instances; a new one goes to the first that can be written.

        `tools` is where nvidia-smi and rocm-smi are looked for, else PATH.
        """
        super().__init__(credentials)
        self._roots = tuple(roots) if roots is not None else _default_roots()
        self._tools = tools

    def account_id(self) -> str:
        return directory.machine_id()

    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        _refuse_other_systems()
        return offers.fitting(requirements, self.name, self._roots, self._tools)

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        _refuse_other_systems()
        if spec.image is not None:
            raise Unsupported("local runs no container images: leave job.image empty or choose another provider")
        if offer.spot:
            raise Unsupported("local has no spot instances: ask for on-demand")
        if spec.host_key is None:
            raise InvalidRequest("local needs a host key for the instance: give LaunchSpec.host_key")
        if spec.options:
            raise InvalidRequest(f"local has no options: leave out {', '.join(sorted(spec.options))}")
        environment: dict[str, str] = {}
        devices = offer.raw.get("devices", ())
        if len(devices) != offer.gpu_count:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(device) for device in devices[: offer.gpu_count])
        try:
            return self._instance(order.start(self._writable_root(), spec, environment))
        except order.Exists as error:
            raise InvalidRequest(str(error)) from None
        except OSError as error:
            kind: type[ProviderError] = NoCapacity if error.errno in _NO_ROOM else InvalidRequest
            raise kind(f"this machine could not start an instance: {error.strerror or error}") from None

    def get_instance(self, instance_id: str) -> Instance:
        unread: list[str] = []
        for root in self._roots:
            try:
                machine = listing.read(root, instance_id)
            except OSError as error:
                unread.append(f"{root}: {error.strerror or error}")
                continue
            if machine is not None:
                return self._instance(machine)
        if unread:
            raise Transient(f"{instance_id} could not be looked for in {'; '.join(unread)}")
        raise NotFound(f"this machine has no instance {instance_id}")

    def list_instances(self, prefix: str) -> Listing:
        instances: dict[str, Instance] = {}
        leftovers: list[Leftover] = []
        unread: dict[str, str] = {}
        for root in self._roots:
            try:
                for name in listing.names(root, prefix):
                    machine = listing.read(root, name)
                    if machine is None:
                        continue
                    if machine.is_visible:
                        instances.setdefault(name, self._instance(machine))
                    else:
                        unread[machine.host] = (
                            f"{name} was made on another host or in another container: look from there"
                        )
                leftovers += [
                    Leftover(id=entry, kind="directory", name=name) for name, entry in listing.leftovers(root, prefix)
                ]
            except OSError as error:
                unread[str(root)] = f"{root} cannot be read: {error.strerror or error}"
        return Listing(
            instances=tuple(instances.values()),
            leftovers=tuple(leftovers),
            incomplete=tuple(Unread(scope=scope, reason=reason) for scope, reason in unread.items()),
        )

    def terminate_instance(self, instance_id: str) -> None:
        for root in self._roots:
            try:
                give_back.end(root, instance_id)
            except OSError as error:
                raise Transient(f"{instance_id} could not be ended: {error.strerror or error}") from None

    def _instance(self, machine: listing.Machine) -> Instance:
        return Instance(
            id=machine.name,
            name=machine.name,
            provider=self.name,
            state=machine.state if machine.is_visible else InstanceState.UNKNOWN,
            region="local",
            created_at=machine.created_at,
            ssh=SshEndpoint(host="127.0.0.1", port=machine.port, user=machine.user) if machine.port else None,
            reason=machine.reason if machine.is_visible else f"it was made on {machine.host}",
            price=0.0,
        )

    def _writable_root(self) -> Path:
        reasons: list[str] = []
        for root in self._roots:
            try:
                directory.make_private(root)
            except OSError as error:
                reasons.append(f"{root}: {error.strerror or error}")
            else:
                return root
        raise InvalidRequest(
            f"no directory for instances can be written ({'; '.join(reasons)}): make one of them writable"
        )


def _refuse_other_systems() -> None:
    if sys.platform != "linux":
        raise Unsupported(f"local needs Linux, but this is {platform.system()}: choose ssh or a cloud instead")


def _default_roots() -> tuple[Path, ...]:
    """By the system's list of users and not by $HOME or $XDG_STATE_HOME: every process of a user must find the same instances."""
    fallback = Path("/tmp") / f"prefect-gpu-{os.getuid()}"  # noqa: S108  # its owner and mode are checked
    try:
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return (fallback,)
    return (home / ".local" / "state" / "prefect-gpu" / "local", fallback)
