"""The compiler as one function: build.py reads top to bottom."""
