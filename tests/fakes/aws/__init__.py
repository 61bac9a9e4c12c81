"""EC2 for tests: moto's server in a process of its own, made to behave like EC2 where moto does not, with real SSH machines.

`AwsCloud.start(folder)` starts the process (`python -m tests.fakes.aws`); it survives whatever happens to the flows that use it
and ends with the test process. What moto does differently, and the layer around it does as AWS documents it:

* moto starts a new instance for each RunInstances: here a ClientToken is a key within Region and zone; the same token with other
  parameters is `IdempotentParameterMismatch`, with the same ones the first answer again (also while the first is being carried out),
  and `IdempotentInstanceTerminated` once its instance is terminated;
* moto's instances run at once and end at once: here they are `pending`, `running`, `shutting-down`, `terminated`;
* moto shows at once what was made: here listings can lag (`hide_new`), by id it is `InvalidInstanceID.NotFound` until then;
* moto has no machines: here each instance has an SSH server on a loopback address of its own (machine.py),
  reads its user data, and ends itself at its lease's end;
* moto tags no network interfaces at RunInstances, knows no `client-token` filter, no EC2 quotas and pages only instances: here it does;
* moto has no capacity reservations: here they are what `set(reservations=)` says, and orders that do not fit theirs are refused;
* moto drops the IOPS of an order's disk, and so refuses every io2: here an io2 has what was asked for, within EC2's bounds;
* moto terminates the first of two ids though the second is unknown: EC2 terminates none;
* errors by code, lost and unreadable answers, closed regions: `fail()`.
"""

from __future__ import annotations

from tests.fakes.aws.account import ACCOUNT, IMAGES, REGIONS, priced_offers, publish_prices
from tests.fakes.aws.cloud import AwsCloud

__all__ = ["ACCOUNT", "IMAGES", "REGIONS", "AwsCloud", "priced_offers", "publish_prices"]
