"""Why is production slow? Five suspects in order, each with the measurement that confirms it or rules it out."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingot.serve.cost import CostCurve

SHARE = 0.10            # part of the computing or of the answer's time from which a suspect counts as confirmed


@dataclass(frozen=True)
class Finding:
    """One suspect. `share` is the part of the time it is guilty of."""

    suspect: str
    measured: str
    share: float
    mend: str

    @property
    def confirmed(self) -> bool:
        """Whether it costs enough to matter."""
        return self.share >= SHARE

    def row(self) -> tuple[str, str, str, str]:
        """For a table."""
        return (self.suspect, "confirmed" if self.confirmed else "ruled out", self.measured,
                self.mend if self.confirmed else "")


def diagnose(model: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The suspects in order, from what a server says of a model and of its other models (GET /status.json)."""
    return [_shape(model), _batches(model), _contention(model, others), _precision(model), _around(model)]


def _total(model: Mapping[str, Any], stage: str) -> float:
    return float(model["totals"][stage])


def _shape(model: Mapping[str, Any]) -> Finding:
    compute, cost = _total(model, "compute") or 1e-12, model["off_profile_seconds"]
    tuned = model["tuned"]
    shape = f"{tuned['rows']} rows" + (f", length {tuned['length']}" if tuned["length"] else "")
    share = 100 * model["off_profile"]
    return Finding("profile shape", f"{share:.0f} % of the batches are not of the tuned shape ({shape}); "
                   f"beyond its time per item they took {cost:.2f} s of {compute:.2f} s", cost / compute,
                   "build for what is served: ingot recommend, then ingot build --profile-from")


def _batches(model: Mapping[str, Any]) -> Finding:
    """What the same items would have cost in batches of the best size."""
    curve = CostCurve.from_json(model["curve"])
    batches = {int(n): count for n, count in model["batches"].items()}
    rows, items = sum(n * count for n, count in batches.items()), model["items"] or 1
    length = model["tuned"]["length"]
    now = sum(count * curve.seconds(n, length) for n, count in batches.items())
    best = min(curve.rows, key=lambda n: curve.seconds(n, length) / n)
    then = items * curve.seconds(best, length) / best
    most = sorted(batches.items(), key=lambda b: -b[1])[:3]
    common = ", ".join(f"{n}: {100 * c / max(1, sum(batches.values())):.0f} %" for n, c in most)
    each = 1e3 * now / items
    common += f", {100 * max(0, rows - items) / rows:.0f} % of them only to fill up" if rows > items else ""
    return Finding("served batches", f"rows of the batches {common}; by the cost curve {each:.2f} ms per item, "
                   f"{1e3 * then / items:.2f} ms in batches of {best}", max(0.0, 1 - then / now) if now else 0.0,
                   f"let requests be batched towards {best} rows: --p99 gives the batcher time to wait")


def _contention(model: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Finding:
    compute, alone = _total(model, "compute") or 1e-12, max(model["predicted_seconds"], 1e-12)
    rest = sorted(((_total(o, "compute"), o["name"]) for o in others), reverse=True)
    who = ", ".join(f"{name} {seconds:.1f} s" for seconds, name in rest[:3] if seconds) or "no other model ran"
    return Finding("contention", f"computing took {compute:.2f} s, {compute / alone:.2f} times what it takes alone; "
                   f"meanwhile {who}", max(0.0, compute - alone) / compute,
                   "give the models threads of their own (config.yaml: threads, instances), or another machine")


def _precision(model: Mapping[str, Any]) -> Finding:
    facts = model["facts"]
    shares = ", ".join(f"{100 * share:.0f} % {name}" for name, share in facts["precision"].items())
    launches, slow = facts["launches"], facts["launches"] - facts["native"]
    wide = sum(share for name, share in facts["precision"].items() if name == "f64")
    return Finding("precision", f"launches compute in {shares}; {slow} of {launches} run on the slow reference path",
                   wide + (slow / launches if launches else 0.0),
                   "ingot inspect ENGINE lists the launches; build with a lower precision or a kernel for them")


def _around(model: Mapping[str, Any]) -> Finding:
    request = _total(model, "request") or 1e-12
    around = sum(_total(model, stage) for stage in ("decode", "encode"))
    queue = _total(model, "queue")
    return Finding("pre-processing", f"decoding and encoding take {100 * around / request:.0f} % of an answer's time, "
                   f"waiting in the queue {100 * queue / request:.0f} %", around / request,
                   "send binary tensors or shared memory instead of JSON")
