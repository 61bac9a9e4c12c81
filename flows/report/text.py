"""Amounts, durations, counts and table cells as people read them: one of each in the whole tree; it imports nothing of ours."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def dollars(amount: float) -> str:
    """`$13.61`; four places below ten cents, where two would say nothing."""
    return f"${amount:.4f}" if 0.00005 <= amount < 0.1 else f"${amount:,.2f}"


def duration(seconds: float) -> str:
    """`0.4 s`, `41 min`, `2 h 05 min`, `3 days`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} days"


def ago(moment: datetime) -> str:
    """`2 h 05 min ago`."""
    return f"{duration(max(0.0, (datetime.now(UTC) - moment).total_seconds()))} ago"


def clock_time(moment: datetime) -> str:
    """The time of day where this process runs, with the day where it is not today."""
    local = moment.astimezone()
    far = local - datetime.now().astimezone() > timedelta(hours=18)
    return local.strftime("%a %H:%M" if far else "%H:%M")


def counted(number: int, noun: str) -> str:
    """`1 offer`, `3 offers`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def cell(text: object) -> str:
    """What may stand in a cell of a markdown table."""
    return str(text).replace("|", "\\|").replace("\r", " ").replace("\n", " ")


def row(*cells: object) -> str:
    """`| aws | $1.25 |`: a row of a markdown table; None is an empty cell."""
    return "| " + " | ".join("" if one is None else cell(one) for one in cells) + " |"
