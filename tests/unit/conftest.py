"""Unit tests are the short loop: fewer examples there; KUBEWORKER_EXAMPLES=1000 looks harder."""

import os

from hypothesis import settings

settings.register_profile("short", max_examples=int(os.environ.get("KUBEWORKER_EXAMPLES", "30")), deadline=None)
settings.load_profile("short")
