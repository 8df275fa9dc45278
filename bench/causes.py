"""Why something failed, in one line."""

import torch

NO_MEMORY = ("can't allocate memory", "not enough memory")  # torch's CPU allocator raises a plain RuntimeError


def ran_out_of_memory(error: Exception) -> bool:
    """Whether memory was too small, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def cause_of(error: Exception) -> str:
    """The kind of failure and what it says of itself."""
    if ran_out_of_memory(error):
        return f"out of memory: {error}"
    return f"{'not finite' if isinstance(error, FloatingPointError) else type(error).__name__}: {error}"
