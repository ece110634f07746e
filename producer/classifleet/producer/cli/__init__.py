"""The command line `classifleet`."""

from classifleet.producer.cli._main import app, main

__all__ = ["app", "main"]
