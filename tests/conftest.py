"""For all tests: the same examples of hypothesis every time, and a cache that is nobody's."""

import os
import tempfile

from hypothesis import settings

settings.register_profile("fewstep", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fewstep")
os.environ["FEWSTEP_CACHE"] = tempfile.mkdtemp(prefix="fewstep-cache-")
