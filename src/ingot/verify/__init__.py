"""Is the engine still the model? Parity on random, resized and special inputs, within a derived tolerance."""
from ingot.verify.alarms import graph_alarms
from ingot.verify.answers import remembered
from ingot.verify.bisect import bisect, first_divergence, first_overflow
from ingot.verify.export import Accepted, Attempt, accept
from ingot.verify.kernels import kernel_by_kernel
from ingot.verify.original import Original, onnxruntime_original, original_from, reference_original
from ingot.verify.parity import Difference, compare
from ingot.verify.probe import Probe, index_limit, probes, random_feeds
from ingot.verify.ties import moved_ties, rounds_to_integers
from ingot.verify.tolerance import Tolerance, tolerances
from ingot.verify.verify import Case, Verdict, failing_probe, refuse, verify

__all__ = [
    "Accepted", "Attempt", "Case", "Difference", "Original", "Probe", "Tolerance", "Verdict", "accept",
    "bisect", "compare", "failing_probe", "first_divergence", "first_overflow", "graph_alarms", "index_limit",
    "kernel_by_kernel", "moved_ties", "onnxruntime_original", "original_from", "probes", "random_feeds",
    "reference_original", "refuse", "remembered", "rounds_to_integers", "tolerances", "verify",
]
