"""Tuners: what the methods that learn from a checkpoint do before they sample.

problem = solvers.tune.Problem(denoiser, guidance=1.0, shape=(3, 32, 32), seed=0, start=start)
finding = solvers.tune.tuner("dc_solver").tune(problem, 10, solvers.tune.NoNotes(), {"samples": 10})
"""

from solvers.registry import Registry, UnknownNameError
from solvers.tune.base import Finding, NoNotes, Notes, Problem, Tuner

TUNERS = Registry(
    "tuner",
    "fewstep.tuners",
    {
        "dpm_solver_v3": "solvers.tune.model_statistics:dpm_solver_v3",
        "dc_solver": "solvers.tune.compensation:dc_solver",
        "time_shift": "solvers.tune.time_shift:time_shift",
        "usf": "solvers.tune.usf:usf",
        "autodiffusion": "solvers.tune.autodiffusion:autodiffusion",
        "fitted": "solvers.tune.fitted:fitted",
    },
)


def tuner(name: str) -> Tuner:
    """The tuner of the solver called `name`; raises UnknownNameError."""
    found = TUNERS.get(name)
    if not isinstance(found, Tuner):
        raise UnknownNameError(f"{name!r} is not a tuner: declare it with solvers.tune.base.tuner")
    return found


__all__ = ["TUNERS", "Finding", "NoNotes", "Notes", "Problem", "Tuner", "tuner"]
