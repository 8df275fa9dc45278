"""Settings of hypothesis for the whole folder: enough examples to find a slip, no limit on the time of one."""

from hypothesis import settings

settings.register_profile("solvers", max_examples=60, deadline=None)
settings.load_profile("solvers")
