"""Plans that a search found: read from the files of `fewstep tune`, one a budget and a guidance scale."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from solvers.learned import entries, pick
from solvers.plan import Option, Plan
from solvers.schedule import Schedule
from solvers.tracer import LEARNING, not_learned, resolve


@dataclass(frozen=True)
class FoundMethod:
    """A solver whose plans, times and all, are what a tuner found for a checkpoint."""

    name: str
    summary: str

    order = 0  # none is claimed: a plan found for one budget has no limit of many steps
    adaptive = False
    learns = True
    note = ""

    @property
    def grids(self) -> Mapping[str, str]:
        return {"*": "the times that were found"}

    @property
    def defaults(self) -> dict[str, Option]:
        return dict(LEARNING)

    def build(
        self,
        schedule: Schedule,
        nfe: int | None = None,
        grid: str | None = None,
        times: Sequence[float] | None = None,
        t_start: float | None = None,
        t_end: float | None = None,
        options: Mapping[str, Option] = MappingProxyType({}),
    ) -> Plan:
        """The plan found for a budget; raises BudgetError where there is none, ValueError for any other grid."""
        if nfe is None or grid is not None or times is not None or t_start is not None or t_end is not None:
            raise ValueError(
                f"{self.name} was found on times of its own: give nfe and no grid, times, t_start or t_end"
            )
        resolved = resolve(self.name, self.defaults, options)
        files = entries(str(resolved["tuned"]), self.name, schedule)
        learned = pick(files, nfe, float(resolved["guidance"]))
        if learned is None:
            raise not_learned(self.name, resolved, files, nfe)
        resolved["tuned"] = learned.sha256[:12]
        found = Plan.from_json(json.dumps(learned.values["plan"]))
        return replace(
            found, method=self.name, options=tuple(resolved.items()), order=0, learned_from=learned.provenance
        )  # fmt: skip


usf = FoundMethod(
    "usf",
    "USF: order, prediction, corrector and time chosen step by step, by search.  Liu et al. 2023, arXiv 2312.07243.",
)
autodiffusion = FoundMethod(
    "autodiffusion",
    "AutoDiffusion: the times of a solver found by evolution.  Li et al. 2023, arXiv 2309.10438.",
)
fitted = FoundMethod(
    "fitted",
    "Fitted: a non-stationary solver, all its coefficients and times fitted to a few trajectories.  "
    "After Shaul et al. 2024, arXiv 2403.01329.",
)
