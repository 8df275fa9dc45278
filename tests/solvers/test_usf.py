"""The frame of multistep solvers holds the published ones exactly, and the search in it pays off and goes on."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import solvers
from solvers.grid import explicit, make_grid
from solvers.learned import Learned
from solvers.plan import Evaluate, Plan
from solvers.schedule import Schedule
from solvers.testing import mixture, start
from solvers.tune.base import Finding, NoNotes
from solvers.tune.predictor import WIDTH, Linearised
from solvers.tune.reference import reference
from solvers.tune.trials import evolve
from solvers.tune.usf import Recipes, usf
from solvers.unified import PUBLISHED, SCHEMES, Move, Recipe, plan, published, weights
from tests.solvers.searches import TINY, InterruptedSearchError, Pages, error, problem

SCHEDULES = [solvers.VPLinear(), solvers.EDM(), solvers.VPDiscrete.linear()]
VP = solvers.VPLinear()
TIMES = (1.0, 0.75, 0.5, 0.3, 0.1, 0.01)


def run(made: Plan) -> torch.Tensor:
    return solvers.sample(made, mixture(made.schedule), start(made.schedule, 3))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_frame_holds_the_published_solvers(name: str, schedule: Schedule) -> None:
    for steps in (1, 2, 5, 8):
        times = make_grid("karras", schedule, steps).times
        ours, theirs = plan(published(name, times), schedule), solvers.plan(name, schedule, times=times)
        assert isinstance(theirs, Plan)
        torch.testing.assert_close(run(ours), run(theirs), rtol=0, atol=1e-11)
        assert (ours.nfe, ours.times) == (theirs.nfe, theirs.times)
        assert ours.buffers <= theirs.buffers


@pytest.mark.parametrize(("order", "scheme"), [(2, "lam"), (2, "dpm"), (3, "equal"), (4, "t"), (4, "u")])
def test_a_noise_step_in_a_plan_of_data_is_the_same_step(order: int, scheme: Any) -> None:
    noise = tuple(Move("noise", min(order, i + 1), scheme, "lam") for i in range(5))
    mixed = (Move("data", 1), *noise[1:])  # the first step is DDIM's in both, and sets the plan's prediction
    plans = [plan(Recipe(TIMES, moves), VP) for moves in ((replace(noise[0], corrector="none"), *noise[1:]), mixed)]
    assert [made.predicts for made in plans] == ["noise", "data"]
    torch.testing.assert_close(run(plans[0]), run(plans[1]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("predicts", ["noise", "data"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_sum_to_one_so_a_single_point_is_exact(scheme: str, predicts: str) -> None:
    grid = explicit(VP, TIMES)
    for nodes in ([3], [3, 2], [3, 2, 1], [3, 2, 1, 0], [3, 4], [3, 2, 4], [3, 2, 1, 0, 4]):
        assert weights(grid, 3, nodes, predicts, scheme).sum() == pytest.approx(1, abs=1e-12)


def test_lam_is_exact_for_a_polynomial_in_lambda() -> None:
    grid, i, nodes = explicit(VP, TIMES), 3, [3, 2, 1, 4]
    s, under = np.polynomial.legendre.leggauss(50)
    lam = grid.lam[i] + (grid.lam[i + 1] - grid.lam[i]) * (s + 1) / 2
    for predicts, sign in (("noise", -1), ("data", 1)):
        under_e = under * np.exp(sign * lam)
        for k in range(4):
            mean = under_e @ lam**k / under_e.sum()
            assert weights(grid, i, nodes, predicts, "lam") @ grid.lam[nodes] ** k == pytest.approx(mean, rel=1e-10)


def test_a_corrector_gains_an_order_without_a_call() -> None:
    grids = [make_grid("logsnr", VP, steps, t_end=1e-2).times for steps in (40, 80, 1000)]
    made = solvers.plan("dpmpp_3m", VP, times=grids[2], exact=True)
    assert isinstance(made, Plan)
    exact = run(made)
    for corrector, order in (("none", 1), ("lam", 2)):
        plans = [plan(Recipe(t, (Move("data", 1, "lam", corrector),) * (len(t) - 1)), VP) for t in grids[:2]]  # type: ignore[arg-type]
        assert [made.nfe for made in plans] == [40, 80]
        coarse, fine = (float((run(made) - exact).norm()) for made in plans)
        assert np.log2(coarse / fine) == pytest.approx(order, abs=0.3)


def test_any_recipe_is_a_plan_that_reads_back() -> None:
    for schedule in SCHEDULES:
        space, rng = Recipes(schedule, 6), np.random.default_rng(0)
        a, b = list(space.published.values())[4:6]
        for _ in range(30):
            a, b = space.child(a, b, rng), a
            made = space.plan(a)
            assert made.nfe == 6 == sum(isinstance(i, Evaluate) for i in made.instructions)
            assert Plan.from_json(made.to_json()) == made
            assert run(made).isfinite().all()
            assert (a.times[0], a.times[-1]) == (schedule.t_max, schedule.t_end)
        assert len({move.scheme for move in a.moves}) > 1


@pytest.mark.parametrize(
    ("times", "moves", "message"),
    [
        (TIMES, (Move("data", 1),), r"1 moves need 2 times, not 6"),
        (TIMES[:2], (Move("data", 2),), r"move 0 has order 2: it may have 1 to 1"),
        (TIMES, (Move("data", 1),) * 4 + (Move("data", 5),), r"move 4 has order 5: it may have 1 to 4"),
        (TIMES[:2], (Move("data", 0),), r"move 0 has order 0"),
        (TIMES[:2], (Move("v", 1),), r"predicts noise or data"),  # type: ignore[arg-type]
        (TIMES[:2], (Move("data", 1, "cubic"),), r"by one of lam, u, t, equal, half, dpm"),  # type: ignore[arg-type]
        (TIMES[:2], (Move("data", 1, "lam", "cubic"),), r"by one of lam, u, t, equal"),  # type: ignore[arg-type]
    ],
)
def test_moves_that_cannot_be_made_are_refused(times: Any, moves: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(times, moves)


def test_a_step_onto_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a recipe needs times with a finite lambda, not \(1.0, 0.0\)"):
        plan(Recipe((1.0, 0.0), (Move("data", 1),)), VP)


def found(finding: Finding) -> Plan:
    return Plan.from_json(json.dumps(finding.values["plan"]))


def test_on_an_isotropic_gaussian_the_predictor_learns_the_network() -> None:
    s2 = 0.4  # where D = y s2/(s2 + u2), so its slope in y is s2/(s2 + u2) in every direction
    u2 = lambda t: (VP.sigma(t) / VP.alpha(t)) ** 2  # noqa: E731
    network = solvers.Denoiser(
        lambda x, t: x / float(VP.alpha(float(t[0]))) * s2 / (s2 + float(u2(float(t[0])))), VP, "data"
    )
    x_T = start(VP, 5)
    model = Linearised(reference(network, x_T, {}, 1.0, 1e-3, 64))
    for t in VP.t_of_lam(np.linspace(-4, 3, 29)).tolist():
        for stray in (-0.1, 0.2):
            x = model.reference.at(t) + stray * float(VP.alpha(t))
            lam, dy, D = model.strayed(x, t)
            assert lam == pytest.approx(float(VP.lam(t)))
            torch.testing.assert_close(dy, torch.full_like(dy, stray), rtol=1e-9, atol=0)
            exact = network(model.reference.at(t), t, "data")
            torch.testing.assert_close(D, exact, rtol=0, atol=2e-4)
            model.observe(x, t, network(x, t, "data"))
    lam, j, k = model.slopes()
    middle = (lam > float(VP.lam(0.95))) & (lam < float(VP.lam(0.05)))
    slope = s2 / (s2 + np.exp(-2 * lam[middle]))
    np.testing.assert_allclose(j[middle], slope, atol=0.08)  # averaged over lambda
    np.testing.assert_allclose(
        k[middle], WIDTH * 2 * slope * (1 - slope), atol=0.05
    )  # what that leaves: WIDTH dj/dlambda


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_the_search_improves_on_every_published_solver(guidance: float) -> None:
    task = problem(guidance=guidance)
    budget = 1200 if guidance == 1 else 2400
    finding = usf.tune(task, 5, NoNotes(), TINY | {"calls": budget, "screened": 80})
    published_too = [error(made, guidance) for made in map(Recipes(VP, 5).plan, Recipes(VP, 5).published.values())]
    assert error(found(finding), guidance) < 0.8 * min(published_too)
    assert budget - 60 * guidance < task.cost.calls <= budget
    assert finding.base.partition("(")[0] in PUBLISHED
    assert finding.objective == "truncation error"


def test_a_search_that_was_interrupted_finds_the_same() -> None:
    whole = (task := problem(), usf.tune(task, 4, NoNotes(), TINY))
    pages = None
    for last in (1, 2):
        task = problem()
        pages = Pages(task, pages, last)
        with pytest.raises(InterruptedSearchError):
            usf.tune(task, 4, pages, TINY)
    task = problem()
    assert usf.tune(task, 4, Pages(task, pages), TINY) == whole[1]
    assert task.cost == whole[0].cost


def test_what_is_found_follows_from_the_seed_and_its_curve_falls() -> None:
    findings = [usf.tune(problem(seed), 4, NoNotes(), TINY) for seed in (12345, 12345, 6)]
    assert findings[0] == findings[1]
    assert findings[0].values["plan"] != findings[2].values["plan"]
    other_draws = usf.tune(replace(problem(12345), seed=6), 4, NoNotes(), TINY)  # on the same samples
    assert findings[0].values["plan"] != other_draws.values["plan"]
    calls, errors = zip(*findings[0].curve, strict=True)
    assert list(np.diff(calls)) == [4 * 12] * (len(calls) - 1)
    assert calls[0] == 12 * (24 + 4)
    assert list(errors) == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]
    assert len(findings[0].values["moves"]) == 4


class Numbers:
    """A space of numbers, the best of which is 1.3."""

    published = {"zero": 0.0, "one": 1.0, "two": 2.0}  # noqa: RUF012
    plan = staticmethod(float)

    def child(self, a: float, b: float, rng: np.random.Generator) -> float:
        return a + 3 + float(rng.random())


class Misled:
    """Trials whose predictor prefers what is far away."""

    problem, screened = SimpleNamespace(seed=0), 10

    def __init__(self) -> None:
        self.tried: list[float] = []
        self.draws: list[float] = []

    @property
    def affordable(self) -> bool:
        return len(self.tried) < 8

    def predictor(self, rng: np.random.Generator) -> Any:
        self.draws.append(rng.random())
        return lambda number: -number

    def evaluate(self, number: float) -> float:
        self.tried.append(number)
        return abs(number - 1.3)

    def save(self) -> None: ...


def test_the_best_tried_is_found_though_the_predictor_be_wrong() -> None:
    trials: Any = Misled()
    assert evolve(trials, Numbers()) == (1.0, "one")  # type: ignore[arg-type]
    assert sorted(trials.tried[:3]) == [0, 1, 2]
    assert len(trials.tried) == len(set(trials.tried)) == 8
    assert min(trials.tried[3:]) > 3
    assert len(trials.draws) == len(set(trials.draws)) == 4  # each generation draws anew


def test_a_metric_is_searched_for_when_asked() -> None:
    seen: list[torch.Size] = []

    def size(x: torch.Tensor) -> float:
        seen.append(x.shape)
        return float(x.double().pow(2).mean())

    finding = usf.tune(problem(metric=("size", size)), 4, NoNotes(), TINY | {"objective": "metric"})
    task = problem()
    x_T, cond = task.start(0, 12, 1.0)
    x = solvers.sample(found(finding), task.denoiser, x_T, cond=cond)
    assert finding.objective == "metric-searched: size"
    assert finding.curve[-1][1] == pytest.approx(size(x), rel=1e-4)
    assert set(seen) == {x_T.shape}
    assert finding.curve[-1][1] < finding.curve[0][1]


def test_a_metric_that_the_objective_does_not_look_at_is_refused() -> None:
    task = problem(metric=("size", lambda x: 0.0))
    with pytest.raises(ValueError, match="does not look at the metric size: give objective=metric"):
        usf.tune(task, 4, NoNotes(), TINY)
    assert task.cost.calls == 0


def test_candidates_that_diverge_are_never_found() -> None:
    first = len(set(Recipes(VP, 4).published.values())) + 1  # all first predictions and one trial
    scores = iter([float("nan")] * first)

    def diverging(x: torch.Tensor) -> float:
        return next(scores, float(x.double().pow(2).mean()))

    finding = usf.tune(problem(metric=("size", diverging)), 4, NoNotes(), TINY | {"objective": "metric"})
    assert len(finding.curve) == (600 - 12 * 24) // 48 - 1
    assert np.isfinite(finding.curve).all()
    with pytest.raises(ValueError, match=r"every one of the 6 candidates tried diverged: nothing was found"):
        usf.tune(problem(metric=("none", lambda x: float("nan"))), 4, NoNotes(), TINY | {"objective": "metric"})


@pytest.mark.parametrize(
    ("nfe", "settings", "message"),
    [
        (1, {}, r"a search: nfe=1 must be at least 2"),
        (4, {"samples": 0}, r"samples=0 must be at least 1"),
        (4, {"solution": 3}, r"solution=3 must be at least 4"),
        (4, {"calls": 335}, r"calls=335 are too few for 12 samples: give at least 336 calls"),
        (4, {"screened": 0}, r"screened=0 must be at least 1"),
        (4, {"objective": "fid"}, r"objective='fid' is none of error, metric"),
        (4, {"objective": "metric"}, r"this problem has no metric"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_a_call(
    nfe: int, settings: dict[str, solvers.Option], message: str
) -> None:
    task = problem()
    with pytest.raises(ValueError, match=message):
        usf.tune(task, nfe, NoNotes(), TINY | settings)
    assert task.cost.calls == 0


def test_a_flow_is_searched_from_where_lambda_is_finite() -> None:
    flow = solvers.RectifiedFlow()
    task = replace(problem(), denoiser=mixture(flow), start=lambda first, count, t: (start(flow, count), {}))
    finding = usf.tune(task, 4, NoNotes(), TINY)
    assert found(finding).times[0] == 0.999
    assert finding.curve[-1][1] < finding.curve[0][1]


def test_the_plan_found_is_sampled_by_name(tmp_path: Path) -> None:
    task = problem()
    finding = usf.tune(task, 4, NoNotes(), TINY)
    learned = Learned(
        "usf", "gmm", "0" * 64, VP, 4, 1.0, finding.base, finding.objective, 0, {}, task.cost, finding.curve,
        finding.values,
    )  # fmt: skip
    for name, data in learned.to_files().items():
        (tmp_path / name).write_bytes(data)
    made = solvers.plan("usf", VP, 4, tuned=str(tmp_path))
    assert isinstance(made, Plan)
    assert made.instructions == found(finding).instructions
    assert made.learned_from is not None
    assert made.learned_from.calls == task.cost.calls
