"""What Ingot tells about an engine, as tables that print and that are data."""
from ingot.report.engine import (
    latency_table,
    memory_table,
    passes_table,
    profile_table,
    race_table,
    roofline_table,
    slow_table,
    summary_lines,
    throughput_table,
    why_table,
)
from ingot.report.precision import noise_table, precision_lines, precision_table
from ingot.report.progress import ProgressBar
from ingot.report.table import Cell, Table, nbytes_text

__all__ = ["Cell", "ProgressBar", "Table", "latency_table", "memory_table", "nbytes_text", "noise_table",
           "passes_table", "precision_lines", "precision_table", "profile_table", "race_table", "roofline_table",
           "slow_table", "summary_lines", "throughput_table", "why_table"]
