"""For all tests: property tests draw the same examples every time; HYPOTHESIS_PROFILE=explore draws new ones, more."""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
