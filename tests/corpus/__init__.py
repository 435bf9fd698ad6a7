"""Failures of real users, each built by a script: it ends right, or alarmed with the cause."""
