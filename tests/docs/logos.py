"""The blocks' logos: a chip with a few letters, each in a colour of its own. Drawn, so that a new block needs nothing."""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from prefect_gpu.blocks.collection import BLOCKS

LETTERS: Final = {
    "aws": "AWS", "azure": "Az", "gcp": "GCP", "kubernetes": "K8s", "lambdalabs": "λ", "realm": "GPU", "registry": "OCI",
    "runpod": "RP", "ssh": "SSH", "tensordock": "TD", "vastai": "Va", "verda": "Ve", "vultr": "Vu",
}  # fmt: skip
HUES: Final = {"aws": 32, "gcp": 215, "kubernetes": 222, "azure": 205, "realm": 250, "ssh": 160}


def svg(name: str) -> str:
    """One logo."""
    letters = LETTERS.get(name, name[:2].capitalize())
    hue = HUES.get(name, int.from_bytes(sha256(name.encode()).digest()[:2], "big") % 360)
    pins = "".join(
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="3"/>'
        for at in (72, 119, 166)
        for x, y, w, h in ((at, 14, 18, 26), (at, 216, 18, 26), (14, at, 26, 18), (216, at, 26, 18))
    )
    size = {1: 104, 2: 84}.get(len(letters), 60)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 256 256" width="256" height="256" role="img" aria-label="{name}">'
        f'<g fill="hsl({hue} 45% 38%)">{pins}</g>'
        f'<rect x="36" y="36" width="184" height="184" rx="28" fill="hsl({hue} 70% 44%)"/>'
        f'<rect x="54" y="54" width="148" height="148" rx="16" fill="none" stroke="#fff" stroke-opacity=".35" stroke-width="4"/>'
        f'<text x="128" y="{128 + size * 0.36:.0f}" fill="#fff" font-family="ui-sans-serif, system-ui, Helvetica, Arial, sans-serif"'
        f' font-size="{size}" font-weight="700" text-anchor="middle">{letters}</text></svg>\n'
    )


def all_of_them() -> dict[str, str]:
    """The file name and text of each block's logo."""
    return {f"{name}.svg": svg(name) for name in BLOCKS}
