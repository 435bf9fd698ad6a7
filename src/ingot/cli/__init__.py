"""The command line: `main` runs one; `app` is the commands themselves."""
from ingot.cli import device, front, profile, serving
from ingot.cli.commands import app, main

__all__ = ["app", "device", "front", "main", "profile", "serving"]
