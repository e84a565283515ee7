"""Measurements beside floors and rivals, in one run on one machine; not part of what is installed. See README.md."""
