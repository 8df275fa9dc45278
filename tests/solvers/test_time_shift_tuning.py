"""What the Time-Shift sampler learns: the search over windows and cutoffs, and what is made of its files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from solvers import noise
from solvers.learned import Cost, Learned, LearnedError
from solvers.schedule import Schedule
from solvers.testing import mixture, start
from solvers.time_shift import TimeShift
from solvers.tune import Finding, NoNotes, Problem, tuner
from solvers.tune.time_shift import CANDIDATES

VP, EDM = solvers.VPLinear(), solvers.EDM()
SMALL: dict[str, solvers.Option] = {"samples": 6, "calls": 30}


def problem(schedule: Schedule = VP, metric: Any = None) -> Problem:
    """The mixture, from starts of which sample i's depends on i alone."""

    def begin(first: int, count: int, t: float) -> tuple[Tensor, dict[str, Tensor]]:
        z = noise.normal(7, noise.TUNING + noise.LATENT, first, count, (12,))
        return schedule.prior_std(t) * torch.from_numpy(z), {}

    return Problem(mixture(schedule), 1.0, (12,), 7, begin, metric)


def tune(asked: Problem, nfe: int = 5, notes: Any = None, **settings: solvers.Option) -> Finding:
    return tuner("time_shift").tune(asked, nfe, notes or NoNotes(), SMALL | settings)


class InterruptError(Exception):
    pass


class Kept:
    """Notes in memory, with the counter beside them, of one who is interrupted after some writes."""

    def __init__(self, asked: Problem, after: int) -> None:
        self.asked, self.after, self.state, self.passed = asked, after, None, 0

    def read(self) -> Any:
        self.asked.denoiser.passed = self.passed
        return self.state

    def write(self, state: Any) -> None:
        self.state = {k: list(v) if isinstance(v, list) else v for k, v in state.items()}
        self.passed = self.asked.denoiser.passed
        self.after -= 1
        if self.after == 0:
            raise InterruptError


@pytest.mark.parametrize(("base", "schedule"), [("ddim", VP), ("dpm_solver_2", VP), ("ddim", EDM)])
def test_it_finds_the_least_of_the_errors_that_it_lists(base: str, schedule: Schedule) -> None:
    asked = problem(schedule)
    finding = tune(asked, 6, base=base)
    errors = {(window, cutoff): error for window, cutoff, error in finding.values["errors"]}
    assert list(errors) == list(CANDIDATES)
    assert errors[finding.values["window"], finding.values["cutoff"]] == min(errors.values()) == finding.curve[-1][1]
    assert (finding.base, finding.values["base"], finding.objective) == (base, base, "truncation error")
    # 30 calls of the reference, 1 where the grid ends on the data, 6 for each candidate, all on 6 samples
    on_data = schedule is EDM
    assert asked.cost.calls == finding.curve[-1][0] == 6 * (30 + on_data + 6 * len(CANDIDATES))
    x_T, _ = asked.start(0, 6, schedule.t_max)
    end = solvers.sample(solvers.plan("unipc", schedule, 300, grid="logsnr"), mixture(schedule), x_T)
    if on_data:
        end = mixture(schedule)(end, schedule.t_end, "data")
    for window, cutoff in [(0, 0), (40, 300)]:
        plan = solvers.plan("time_shift", schedule, 6, base=base, window=window, cutoff=cutoff)
        error = float((solvers.sample(plan, mixture(schedule), x_T) - end).square().mean().sqrt())
        assert error == pytest.approx(errors[window, cutoff], rel=2e-2)


@pytest.mark.parametrize("after", [1, 9, len(CANDIDATES)])
def test_an_interrupted_search_goes_on_to_the_same_finding(after: int) -> None:
    whole, notes = tune(problem()), Kept(problem(), after)
    with pytest.raises(InterruptError):
        tune(notes.asked, notes=notes)
    notes.asked = problem()
    assert tune(notes.asked, notes=notes) == whole
    assert notes.asked.cost.calls == whole.curve[-1][0]


@pytest.mark.parametrize("base", ["ddim", "ddpm"])
def test_a_metric_is_searched_for_in_place_of_the_truncation_error(base: str) -> None:
    """One that likes large samples finds another shift, and needs no reference."""
    asked = problem(metric=("smallness", lambda x: float(-x.square().mean())))
    finding = tune(asked, base=base)
    assert (finding.objective, asked.cost.calls) == ("smallness", 6 * 5 * len(CANDIDATES))
    assert finding.values["window"] > 0
    assert tune(problem(metric=asked.metric), base=base) == finding
    plan = solvers.plan("time_shift", VP, 5, base=base, window=0, cutoff=0)
    draw = [noise.normal(7, noise.TUNING + noise.STEP + k, 0, 6, (12,)) for k in range(plan.draws)]
    x = solvers.sample(plan, mixture(VP), asked.start(0, 6, 1.0)[0], lambda k: torch.from_numpy(draw[k]))
    assert finding.values["errors"][0] == [0, 0, pytest.approx(float(-x.square().mean()), rel=1e-12)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "ddpm"}, r"tuning time_shift\(ddpm\): it follows no ODE; give a metric"),
        ({"samples": 0}, "tuning time_shift: samples=0 must be at least 1"),
        ({"base": "pndm_f"}, "pndm_f cannot spend 5 calls: it can spend 4, 8, 12"),
        ({"base": "heun"}, "time_shift: base='heun' is none of ddim"),
        ({"window": 3}, "tuning time_shift has no option 'window': it has base, samples, calls"),
    ],
)
def test_what_cannot_be_tuned_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(problem(), **settings)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What was learned for 6 calls of DDIM: a window of 20 above label 300."""
    values = {"base": "ddim", "window": 20, "cutoff": 300, "errors": [[0, 0, 0.2], [20, 300, 0.1]]}
    learned = Learned(
        "time_shift", "a", "digest", VP, 6, 1.0, "ddim", "frechet", 0, {}, Cost(100), ((50, 0.2), (100, 0.1)), values
    )  # fmt: skip
    for name, data in learned.to_files().items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_without_window_and_cutoff_what_was_tuned_is_used(folder: Path) -> None:
    made = solvers.plan("time_shift", VP, 6, tuned=str(folder))
    given = solvers.plan("time_shift", VP, 6, window=20, cutoff=300)
    assert isinstance(made, TimeShift)
    assert made.learned_from is not None
    assert (made.learned_from.calls, made.learned_from.objective) == (100, "frechet")
    assert replace(made, learned_from=None) == given
    assert dict(made.options)["tuned"] == made.learned_from.sha256[:12]
    assert made.to_json() != given.to_json()
    x, other = (solvers.sample(plan, mixture(VP), start(VP, 3)) for plan in (made, given))
    assert torch.equal(x, other)
    by_times = solvers.plan("time_shift", VP, times=np.linspace(1, 1e-3, 7).tolist(), tuned=str(folder))
    assert by_times.learned_from == made.learned_from


def test_a_window_and_a_cutoff_come_before_what_was_tuned(folder: Path) -> None:
    given = {"window": 40, "cutoff": 200}
    assert solvers.plan("time_shift", VP, 9, tuned=str(folder), **given) == solvers.plan("time_shift", VP, 9, **given)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tuned": ""}, LearnedError, "run `fewstep tune time_shift` and give tuned=FOLDER; or give window and cutoff"),
        ({"tuned": "/nowhere"}, LearnedError, "/nowhere holds nothing learned: .*; or give window and cutoff"),
        ({"nfe": 7}, solvers.BudgetError, "holds 6 calls at guidance 1, not 7 at guidance 1: run `fewstep tune"),
        ({"guidance": 2.0}, solvers.BudgetError, "holds 6 calls at guidance 1, not 6 at guidance 2"),
        ({"base": "deis_tab3"}, LearnedError, r"was tuned for time_shift\(ddim\), not for deis_tab3"),
        ({"schedule": EDM}, LearnedError, "was learned on VPLinear"),
    ],
)
def test_what_was_not_tuned_is_refused(folder: Path, options: dict[str, Any], error: type, message: str) -> None:
    given = {"schedule": VP, "nfe": 6, "tuned": str(folder)} | options
    with pytest.raises(error, match=message):
        solvers.plan("time_shift", **given)
