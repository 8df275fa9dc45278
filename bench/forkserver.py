"""The process from which measuring processes are forked: clean, with torch imported and nothing run on it."""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext


def start_server() -> ForkServerContext:
    """Start it if it does not run yet; its imports go on beside the caller's, which need no torch for this."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.measure"])
    forkserver.ensure_running()
    return context
