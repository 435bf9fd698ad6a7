"""How a request can fail, and what each way is called over HTTP and over gRPC."""
from __future__ import annotations

from collections.abc import Mapping

# kind -> (HTTP status, name of the gRPC status)
CODES: Mapping[str, tuple[int, str]] = {
    "invalid": (400, "INVALID_ARGUMENT"),
    "unauthenticated": (401, "UNAUTHENTICATED"),
    "forbidden": (403, "PERMISSION_DENIED"),
    "unknown": (404, "NOT_FOUND"),
    "method": (405, "UNIMPLEMENTED"),
    "large": (413, "RESOURCE_EXHAUSTED"),
    "full": (429, "RESOURCE_EXHAUSTED"),
    "cancelled": (499, "CANCELLED"),
    "failed": (500, "INTERNAL"),
    "unsupported": (501, "UNIMPLEMENTED"),
    "unavailable": (503, "UNAVAILABLE"),
    "late": (504, "DEADLINE_EXCEEDED"),
}
