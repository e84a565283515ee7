"""The guide's own shell settings, read without running them."""
