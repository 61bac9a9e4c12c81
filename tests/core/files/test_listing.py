"""What a machine says is there, and what of it is meant."""

from __future__ import annotations

import pytest

from prefect_gpu.providers.core.errors import InstanceFailed, InvalidRequest
from prefect_gpu.providers.core.machine.listing import Found, Reader


def found(listed: bytes, patterns: list[str], size: int = 7) -> Found:
    """What is meant, when the list comes in pieces of this size."""
    reader = Reader(patterns)
    for start in range(0, len(listed), size):
        reader.feed(listed[start : start + size])
    return reader.found()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", ""], ids=lambda name: name or "empty")
def test_a_hostile_machine_writes_nothing_outside_the_destination(name: str) -> None:
    with pytest.raises(InvalidRequest):
        found(f"f 4 644 {name}".encode() + b"\0\0", ["."])


@pytest.mark.parametrize("listed", [b"f 4 644", b"f  644 a\0\0", b"f 4 9 a\0\0", b"f 4 644 a\0"])
def test_a_listing_that_nobody_understands_is_said(listed: bytes) -> None:
    with pytest.raises(InstanceFailed, match="does not list"):
        found(listed, ["."])


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.pt"], {"a.pt"}),
        (["**/*.pt"], {"a.pt", "d/b.pt", "d/e/c.pt"}),
        (["d"], {"d", "d/b.pt", "d/e", "d/e/c.pt"}),
        (["d/"], {"d", "d/b.pt", "d/e", "d/e/c.pt"}),
        (["d/*.pt"], {"d/b.pt"}),
        (["?.pt", "d/e"], {"a.pt", "d/e", "d/e/c.pt"}),
        (["a[0-9].txt"], {"a1.txt"}),
        (["!odd"], {"!odd"}),
        (["#1"], {"#1"}),
        (["sp ace "], {"sp ace "}),
        (["./a.pt"], {"a.pt"}),
        (["."], None),
    ],
)
def test_patterns_are_shell_like_and_begin_in_the_job_s_directory(
    patterns: list[str], expected: set[str] | None
) -> None:
    names = ["a.pt", "a1.txt", "d", "d/b.pt", "d/e", "d/e/c.pt", "!odd", "#1", "sp ace "]
    listed = b"".join(f"{'d' if name in {'d', 'd/e'} else 'f'} 0 644 {name}\0\0".encode() for name in names)
    hits = found(listed, patterns)
    assert {entry.name for entry in hits.entries} == (set(names) if expected is None else expected)
    assert hits.missing == ()
