"""Google Cloud: virtual machines of Compute Engine, on demand or spot, in every zone that the project has a subnet for.

Rented is a machine type in one zone, billed by the second while it runs, 60 s at least; disk, public address and traffic come on top.
A machine is deleted by Compute Engine itself when its lease ends. Prices come from the catalog; what is in stock Google tells nobody before
an order. Ids are `zone/name`. API: https://cloud.google.com/compute/docs/reference/rest/v1

Reading order: driver, offers, quotas, images, machines, network, firewall, reservations, order, operations, instances, listing, give_back, rights,
api, login, errors.
"""

from prefect_gpu.blocks.gcp import GcpCredentials
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.gcp.driver import Gcp

tasks = TaskLibrary(Gcp, GcpCredentials)
