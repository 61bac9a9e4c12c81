"""A stream of contents taken apart at its marks."""

from __future__ import annotations

import io

import pytest

from prefect_gpu.providers.core.machine.marked import CutShort, Marked


@pytest.mark.parametrize("size", [1, 2, 5, 8, 1000])
def test_marks_are_found_wherever_the_stream_is_cut(size: int) -> None:
    stream = io.BytesIO(b"<mark>one<mark><mark><mar<mark>k<<mark>")
    told: list[bytes] = []
    marked = Marked(lambda most: stream.read(min(size, most)), b"<mark>", told.append)
    assert [b"".join(marked.until_mark()) for _ in range(5)] == [b"", b"one", b"", b"<mar", b"k<"]
    assert marked.is_over()
    assert b"".join(told) == stream.getvalue()
    with pytest.raises(CutShort):
        list(marked.until_mark())
