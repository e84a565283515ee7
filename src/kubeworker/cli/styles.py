"""Colours by meaning, the same in every table and in the live view."""

STYLES = {
    "ok": "green",
    "done": "green",
    "passed": "green",
    "running": "cyan",
    "failed": "bold red",
    "unreachable": "bold red",
    "skipped": "yellow",
    "pending": "yellow",
    "waits": "yellow",
}
"""Colour by status."""
