"""What the API server refuses, as errors of ours: by Kubernetes' reason and status, and by its words where these mean several things."""

from __future__ import annotations

import re
from typing import Final

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InvalidRequest,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
)
from prefect_gpu.providers.core.toolkit.answers import Json, Meanings, Problem
from prefect_gpu.providers.kubernetes.objects import as_dict, as_text

# Kubernetes has few codes: a refusal by quota, by policy and by RBAC are all 403 Forbidden and differ by words that its own
# sources fix (plugin/pkg/admission/resourcequota/controller.go, staging/src/k8s.io/apiserver/pkg/endpoints/handlers/responsewriters).
_OVER_QUOTA: Final = re.compile(r"exceeded quota|maximum (cpu|memory|ephemeral-storage|[\w./-]*gpu[\w.-]*) usage per")
_MAY_NOT: Final = re.compile(r"cannot \w+ resource|no RBAC policy matched|User \"[^\"]*\" cannot")
# Said before an object is stored, and so certainly of one that was not: a webhook that cannot be called or answers nonsense, one that
# denies (its status is its author's choice, 500 too), and admission that takes too long before it (apiserver/pkg/admission/plugin/webhook).
_NOT_ADMITTED: Final = re.compile(
    r"failed calling webhook|failed to call webhook|admission webhook \".*\" denied the request"
    r"|admission plugin \"[^\"]*\" failed to complete (mutation|validation)"
)
# What quotas (plugin/pkg/admission/resourcequota) and limit ranges (plugin/pkg/admission/limitranger) say of a pod without limits.
_MUST_SPECIFY: Final = re.compile(r"must specify ([\w./,-]+)")
_BY_RANGE: Final = re.compile(
    r"(?:minimum|maximum) (cpu|memory|ephemeral-storage) usage per \w+ is [^,;.]{1,40}[,;.] *(?:but )?no limit is specified"
    r"|(cpu|memory|ephemeral-storage) max limit to request ratio per \w+",
    re.IGNORECASE,
)


class Exists(ProviderError):
    """409 AlreadyExists; never leaves this package."""


def _problem(body: Json) -> Problem | None:
    """Reason and words of a Status object; where a reason means several things, a code that says which."""
    status = as_dict(body)
    words, reason = as_text(status.get("message")), as_text(status.get("reason"), 60)
    if _NOT_ADMITTED.search(words):
        return Problem("NotAdmitted", words)
    if reason == "Forbidden" or status.get("code") == 403:
        if wanted_limits(words):
            return Problem("LimitsWanted", words)
        if _OVER_QUOTA.search(words):
            return Problem("OverQuota", words)
        return Problem("Forbidden" if _MAY_NOT.search(words) or not words else "Denied", words)
    return Problem(reason or None, words) if words or reason else None


MEANINGS: Final = Meanings(
    codes={
        "NotAdmitted": InvalidRequest,
        "LimitsWanted": InvalidRequest,
        "OverQuota": QuotaExceeded,
        "Denied": InvalidRequest,  # by a policy: PodSecurity, a namespace that is being deleted
        "Forbidden": AuthFailed,
        "AlreadyExists": Exists,
        "Conflict": RateLimited,
        "Expired": Transient,  # a page of a listing that took too long
    },
    statuses={409: RateLimited, 410: Transient},
    problem=_problem,
)


def wanted_limits(words: str) -> frozenset[str]:
    """Of which resources the cluster wants limits before it takes a pod, by its refusal; none where that was not the cause."""
    found = {match[1] or match[2] for match in _BY_RANGE.finditer(words)}
    for listed in _MUST_SPECIFY.findall(words):
        found |= {one.removeprefix("limits.") for one in listed.split(",") if one.startswith("limits.")}
        found |= {"ephemeral-storage" for one in listed.split(",") if one == "requests.ephemeral-storage"}
    return frozenset(found & {"cpu", "memory", "ephemeral-storage"})
