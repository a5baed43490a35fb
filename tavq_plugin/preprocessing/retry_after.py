"""How long a server asks to wait before the next request: the header Retry-After."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def seconds_to_wait(header: str, now: datetime | None = None) -> float | None:
    """Seconds, from a number or an HTTP date; None if the header says nothing that can be understood.

    >>> seconds_to_wait("7"), seconds_to_wait(""), seconds_to_wait("soon"), seconds_to_wait("-3")
    (7.0, None, None, 0.0)
    >>> seconds_to_wait("Wed, 21 Oct 2015 07:28:00 GMT", datetime(2015, 10, 21, 7, 27, 30, tzinfo=UTC))
    30.0
    """
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - (now or datetime.now(UTC))).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None
