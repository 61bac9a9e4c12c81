"""An order: its body, and the commands by which a container destroys its own contract at the end of its lease."""

from __future__ import annotations

import shlex
from typing import Any, Final

from prefect_gpu.blocks.vastai import VastaiOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.toolkit import container_boot

NAME: Final = "PREFECT_GPU_NAME"  # only an order sets a variable; anybody may set a label
# With the key that Vast.ai puts into each container, for this one alone. A value of a variable has at most 256 characters, so they are
# three; they say nothing of what goes wrong, for in words of Python's the key could stand, and the log is no place for it. What has
# neither curl nor Python gets curl for the next try, in 20 s.
GIVE_BACK: Final = (
    "exec 2>/dev/null;export u=https://console.vast.ai/api/v0/instances/$CONTAINER_ID/;"
    'export h="Bearer $CONTAINER_API_KEY";curl -sfm30 -XDELETE -H "Authorization: $h" $u||'
    'eval "$PREFECT_GPU_BY_PYTHON"||eval "$PREFECT_GPU_GET_CURL"'
)
HELPERS: Final = {
    "PREFECT_GPU_BY_PYTHON": (
        'python3 -c "import os,urllib.request as r;e=os.environ;'
        "r.urlopen(r.Request(e['u'],headers={'Authorization':e['h']},method='DELETE'),timeout=30)\""
    ),
    "PREFECT_GPU_GET_CURL": "apk add curl||{ apt-get update;apt-get install -y curl;}",
}


def body_of(offer: models.Offer, spec: models.LaunchSpec, chosen: VastaiOptions) -> dict[str, Any]:
    """What a PUT to an ask gets. Raises, in a sentence, for what Vast.ai cannot do."""
    if spec.network == "private":
        raise errors.Unsupported("Vast.ai's containers have public ports: leave out network=private")
    variables = {NAME: spec.name, **container_boot.environment(spec, give_back=GIVE_BACK), **HELPERS}
    shell, *arguments = container_boot.command()
    body: dict[str, Any] = {
        "label": spec.name,
        "image": spec.image or chosen.image,
        "disk": offer.disk_gb,
        "env": {f"-p {container_boot.PORT}:{container_boot.PORT}": "1", **variables},
        "user": "root",  # whom the jobs are sent to, whatever the image says
        "runtype": "args",
        "onstart": shell,  # in this way of running: the entrypoint
        "args": arguments,
        "target_state": "running",
        "cancel_unavail": True,  # else what cannot start now waits, stopped, and costs its disk; the default for bids
    }
    if offer.spot:
        body["price"] = offer.raw["bid"]
    if (login := spec.registry) is not None:
        given = ("-u", login.username, "-p", login.password.get_secret_value(), login.server)
        body["image_login"] = shlex.join(given)
    return body


def without_password(refused: errors.ProviderError, spec: models.LaunchSpec) -> errors.ProviderError:
    """The refusal without the registry's password, should Vast.ai repeat what was sent."""
    if spec.registry is not None and (password := spec.registry.password.get_secret_value()):
        for form in (shlex.quote(password), password):
            refused.message = refused.message.replace(form, "***")
        refused.args = (refused.message,)
    return refused
