"""Log lines of the service: one JSON object each, on stderr, without user ids unless asked."""

import json
import sys
from datetime import UTC, datetime
from typing import Any


def log(**facts: Any) -> None:
    """Write one line; the time comes first."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": time, **facts}), file=sys.stderr, flush=True)
