"""Certificates: who signs, which requests may be approved, how long they last."""
