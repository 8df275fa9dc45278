"""Our plans beside recordings of official implementations."""

import torch

import solvers
from bench.checkpoints import load
from bench.errors import UsageError
from bench.gate.baseline import Recording
from bench.words import parse

BY = "gmm"  # the checkpoint whose network the recordings were made on


def error_of(name: str, recording: Recording) -> tuple[float, float]:
    """The largest error of our plan against a recording, in float64, and the size of what was recorded.

    Raises UsageError for a recording that is no such thing, and UnknownNameError for a solver that is none.
    """
    from bench.checkpoints.gmm import OnSchedule

    method, options = parse("solver", recording.solver)
    found = solvers.method(method)
    try:
        schedule = solvers.schedule.schedule_from_dict(recording.schedule)
        plan = found.build(schedule, times=recording.times, options=options)
        x_T, expected, noise = (
            torch.tensor(values, dtype=torch.float64)
            for values in (recording.x_init, recording.x_final, recording.noise)
        )
        denoiser = solvers.Denoiser(OnSchedule(load(BY).network.mixture, schedule), schedule)
        x = solvers.sample(plan, denoiser, x_T, noise=lambda k: noise[k])
        return float((x - expected).abs().max()), float(expected.abs().max())
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UsageError(f"recording {name!r}: {error}") from error
