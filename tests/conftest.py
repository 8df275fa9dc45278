"""Settings of hypothesis for all tests: the same examples every time, so that equal code gets an equal answer."""

from hypothesis import settings

settings.register_profile("fewstep", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fewstep")
