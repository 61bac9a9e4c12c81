"""A team's own machines, reached by SSH: each, or each GPU slice of it, is lent to one job at a time by a claim on the machine itself.

Nothing is billed; a price in the block ranks them among rented ones. What stands on a machine: claims.py.
"""

from __future__ import annotations

from typing import ClassVar

from prefect_gpu.blocks.ssh import SshHost, SshMachines
from prefect_gpu.providers.core.contract import Billing, Capabilities, Provider
from prefect_gpu.providers.core.errors import AuthFailed, NotFound, ProviderError
from prefect_gpu.providers.core.machine import smi
from prefect_gpu.providers.core.machine.keys import fingerprint
from prefect_gpu.providers.core.models import Availability, Instance, LaunchSpec, Leftover, Listing, Offer, Unread
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.ssh import ending, listing, offers, order, rights
from prefect_gpu.providers.ssh.claims import checked_name, facts_program, survey_program
from prefect_gpu.providers.ssh.errors import LinkBroke, because
from prefect_gpu.providers.ssh.reach import Hosts


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
        sold_out_s=0,  # own machines: free again as soon as whoever has them is done
        boot_deadline_s=60,  # it is up already: what does not let the key of its claim in by then never will
        billing=Billing(step_s=1, minimum_s=0),
    )

    def __init__(self, credentials: SshMachines) -> None:
        super().__init__(credentials)
        self.hosts = Hosts(credentials)

    def account_id(self) -> str:
        return "own-machines"  # a claim's scope is its machine; machines may come and go meanwhile

    def missing_rights(self) -> list[str]:
        return rights.missing(self.hosts)

    def first_contact(self) -> tuple[SshMachines, list[str]]:
        return rights.with_host_keys(self.hosts)

    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        if requirements.spot is Spot.SPOT:
            return []

        def ask(host: SshHost) -> list[Offer]:
            survey = self._survey(host, survey_program(settled=False) + facts_program() + smi.PROGRAM, timeout_s=60.0)
            pinned = None if host.host_key else self.hosts.first_use.pinned(host.name)
            return offers.of_machine(host, survey, requirements, pinned and fingerprint(pinned))

        answers = self.hosts.everywhere(ask)
        refused = [f"{host.name}: {because(answer)}" for host, answer in answers if isinstance(answer, AuthFailed)]
        if len(refused) == len(answers):
            raise AuthFailed("; ".join(refused))
        found: list[Offer] = []
        for host, answer in answers:
            down = isinstance(answer, ProviderError)
            found += offers.of_unreachable(host, answer, requirements) if down else answer
        return sorted(found, key=lambda offer: offer.availability is Availability.UNAVAILABLE)

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        return order.create(self.hosts, offer, spec)

    def get_instance(self, instance_id: str) -> Instance:
        host, name = self._located(instance_id)
        survey = self._survey(host, survey_program(settled=True))
        for claim in survey.claims:
            if claim.name == name:
                return listing.instance(host, self.hosts.endpoint(host), claim, survey)
        raise NotFound(f"{host.name} has no claim of {name}")

    def list_instances(self, prefix: str) -> Listing:
        def ask(host: SshHost) -> tuple[list[Instance], list[Leftover]]:
            survey = self._survey(host, survey_program(settled=True))
            held = [claim for claim in survey.claims if claim.name.startswith(prefix)]
            endpoint = self.hosts.endpoint(host)
            instances = [listing.instance(host, endpoint, claim, survey) for claim in held]
            return instances, listing.leftovers(host, survey, prefix)

        instances: list[Instance] = []
        leftovers: list[Leftover] = []
        unread: list[Unread] = []
        for host, answer in self.hosts.everywhere(ask):
            if isinstance(answer, ProviderError):
                unread.append(Unread(scope=host.name, reason=because(answer)))
            else:
                instances += answer[0]
                leftovers += answer[1]
        return Listing(instances=tuple(instances), leftovers=tuple(leftovers), incomplete=tuple(unread))

    def terminate_instance(self, instance_id: str) -> None:
        host, name = self._located(instance_id)
        ending.give_back(self.hosts, host, name)

    def _located(self, instance_id: str) -> tuple[SshHost, str]:
        host, _, name = instance_id.partition("/")
        return self.hosts.host(host), checked_name(name)

    def _survey(self, host: SshHost, program: str, *, timeout_s: float = 40.0) -> listing.Survey:
        try:
            done = self.hosts.execute(host, program, timeout_s=timeout_s)
        except LinkBroke:  # many machines may share it; looking once more changes nothing there
            done = self.hosts.execute(host, program, timeout_s=timeout_s)
        return listing.parse(host.name, done)
