"""On which machine, and when, something was measured."""
from __future__ import annotations

import time
from typing import Any

from ingot.runtime.host import host_target


def machine() -> dict[str, Any]:
    """cpu, threads and date."""
    target = host_target()
    return {"cpu": target.device, "threads": target.threads, "date": time.strftime("%Y-%m-%d")}
