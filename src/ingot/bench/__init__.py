"""Measuring: latency, and other runtimes side by side."""
