"""Nodes that try to reach each other, and what has come of it."""
