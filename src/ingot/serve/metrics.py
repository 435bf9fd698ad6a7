"""The counters as Prometheus sees them: read from the models' own when they are asked for."""
from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ingot.serve.stats import EDGES, STAGES

if TYPE_CHECKING:
    from ingot.serve.server import Server

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


def memory_of(pid: int) -> int:
    """Bytes of memory a process holds; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


class ModelMetrics(Collector):
    """All metrics of a server, labelled by model and version."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def collect(self) -> Iterator[Metric]:
        """Every metric family once."""
        models = self._server.repository.loaded
        labels = ("model", "version")
        stage = HistogramMetricFamily("ingot_stage_seconds", "seconds of each stage of a request or batch",
                                      labels=(*labels, "stage"))
        batch = HistogramMetricFamily("ingot_batch_rows", "rows of executed batches, padding included", labels=labels)
        plain = {name: (CounterMetricFamily if counter else GaugeMetricFamily)(name, text, labels=labels)
                 for name, text, counter in _FAMILIES}
        failed = CounterMetricFamily("ingot_failed_requests", "requests that failed, by the kind of failure",
                                     labels=(*labels, "kind"))
        precision = GaugeMetricFamily("ingot_precision_share", "share of the launches that compute in an element type",
                                      labels=(*labels, "dtype"))
        memory = GaugeMetricFamily("ingot_worker_memory_bytes", "resident memory of a worker process",
                                   labels=(*labels, "instance"))
        for model in models:
            at = (model.name, model.version)
            stats = model.stats
            for name in STAGES:
                histogram = stats.stages[name]
                total, buckets = 0, []
                for edge, count in zip((*map(str, EDGES), "+Inf"), histogram.counts, strict=True):
                    total += count
                    buckets.append((edge, float(total)))
                stage.add_metric((*at, name), buckets, histogram.total)
            sizes = sorted(stats.batches.items())
            batch.add_metric(at, [(str(n), float(sum(v[0] for k, v in sizes if k <= n))) for n in ROWS]
                             + [("+Inf", float(sum(v[0] for _, v in sizes)))], float(sum(k * v[0] for k, v in sizes)))
            for name, value in {
                    "ingot_items": stats.items, "ingot_padded_rows": stats.padded_rows,
                    "ingot_off_profile_batches": stats.off_profile,
                    "ingot_off_profile_seconds": stats.off_profile_seconds, "ingot_batches_ahead": stats.ahead,
                    "ingot_contended_seconds": stats.contended_seconds, "ingot_worker_restarts": stats.restarts,
                    "ingot_retries": stats.retries, "ingot_queue_length": model.waiting,
                    "ingot_model_ready": float(model.ready),
                    "ingot_arena_bytes": model.description.facts["arena"] if model.description else 0}.items():
                plain[name].add_metric(at, value)
            for kind, count in sorted(stats.failed.items()):
                failed.add_metric((*at, kind), count)
            if model.description:
                for dtype, share in model.description.facts["precision"].items():
                    precision.add_metric((*at, dtype), share)
            for i, instance in enumerate(model.instances):
                memory.add_metric((*at, str(i)), memory_of(instance.pid))
        yield from (stage, batch, *plain.values(), failed, precision, memory)


_FAMILIES = (
    ("ingot_items", "rows answered", True), ("ingot_padded_rows", "rows computed only to fill a batch", True),
    ("ingot_off_profile_batches", "batches of another shape than the engine was tuned for", True),
    ("ingot_batches_ahead", "batches a worker had before it was done with the one before", True),
    ("ingot_off_profile_seconds", "what those took beyond the tuned shape's time per item", True),
    ("ingot_contended_seconds", "computing time beyond what the cost curve says", True),
    ("ingot_worker_restarts", "workers lost and started again", True),
    ("ingot_retries", "requests run again after their worker was lost", True),
    ("ingot_queue_length", "requests that wait", False), ("ingot_model_ready", "1 where the model answers", False),
    ("ingot_arena_bytes", "memory planned for intermediate values, per instance", False),
)
