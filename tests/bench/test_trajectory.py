"""The trajectory error: its reference solution, its numbers and its cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import solvers
from bench.cell import Sampler
from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, Guide, Task, load
from bench.checkpoints.gmm import GaussianMixture, OnSchedule
from bench.errors import UsageError
from bench.metrics import Chunk, Context
from bench.metrics import trajectory as module
from bench.metrics.trajectory import SAMPLES, TrajectoryError, solve
from bench.sealed import read_arrays, write_arrays
from bench.spec import Sweep

GMM = load("gmm")
CPU = torch.device("cpu")
T_END = GMM.schedule.t_end


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(GMM, 0, Task(), tmp_path, CPU)


def rms(x: NDArray[np.float64]) -> float:
    return float(np.sqrt((x**2).mean()))


def error(context: Context, solver: str, nfe: int) -> tuple[float, float]:
    """RMSE of a solver on the mixture, and its standard error."""
    sweep = Sweep(checkpoint="gmm", solvers=(solver,), nfe=(nfe,), samples=SAMPLES, precision="fp64")
    cell = cells(sweep, Subjects(GMM))[0][0]
    sampler = Sampler(cell, GMM, CPU)
    metric = TrajectoryError(context)
    features = metric.extract(Chunk.of(0, sampler.draw(0, *sampler.inputs(0, SAMPLES)), GMM))
    value = metric.evaluate(features, cell.plan.times)[0]
    assert (value.metric, value.n) == ("trajectory_rmse", SAMPLES)
    return value.value, value.se


def test_tightening_the_tolerance_changes_little(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    loose = solve(context, 1.0, T_END)
    monkeypatch.setattr(module, "RTOL", 1e-9)
    monkeypatch.setattr(module, "ATOL", 1e-9)
    tight = solve(context, 1.0, T_END)
    assert 1e-9 < rms(loose - tight) < 1e-5


def test_solution_of_one_gaussian_is_the_closed_form(tmp_path: Path) -> None:
    """Along each axis x - alpha mu keeps its share of the marginal's standard deviation."""
    m = GaussianMixture.random(5, k=1, shape=(4,), classes=1)
    one = replace(GMM, network=OnSchedule(m, GMM.schedule), shape=(4,), classes=(1.0,))
    x, t = one.latents(3, 0, SAMPLES, 1.0), np.array([1.0, T_END])
    alpha, sigma = one.schedule.alpha(t), one.schedule.sigma(t)
    std = [(a**2 * m.variances[0] + s**2).sqrt() for a, s in zip(alpha, sigma, strict=True)]
    z = (x - alpha[0] * m.means[0]) @ m.axes[0]
    expected = alpha[1] * m.means[0] + (z * std[1] / std[0]) @ m.axes[0].T
    assert rms(solve(Context(one, 3, Task(), tmp_path, CPU), 1.0, T_END) - expected.numpy()) < 1e-5


def test_a_plan_that_ends_on_the_data_is_compared_with_the_denoised_solution(context: Context) -> None:
    x = torch.from_numpy(solve(context, 1.0, T_END)).reshape(-1, *GMM.shape)
    alpha, sigma = float(GMM.schedule.alpha(T_END)), float(GMM.schedule.sigma(T_END))
    noise = GMM.network.mixture.noise(x, alpha, sigma, GMM.labels(0, 0, SAMPLES))
    denoised = ((x - sigma * noise) / alpha).flatten(1).numpy()
    assert rms(denoised - x.flatten(1).numpy()) > 1e-4
    np.testing.assert_allclose(solve(context, 1.0, 0.0), denoised, atol=1e-10)


def test_guidance_and_seed_change_the_solution(context: Context) -> None:
    plain = solve(context, 1.0, T_END)
    assert rms(solve(replace(context, task=Task(Guide(2.0))), 1.0, T_END) - plain) > 0.01
    assert rms(solve(replace(context, seed=1), 1.0, T_END) - plain) > 0.1


def test_many_calls_come_close_and_few_stay_far(context: Context) -> None:
    near, far = error(context, "dpmpp_2m", 400), error(context, "ddim", 5)
    assert near[0] < 1e-4
    assert far[0] > 0.1
    assert 0 < near[1] < near[0]
    assert 0 < far[1] < far[0] / 5


def test_a_plan_onto_the_data_converges_too(context: Context) -> None:
    assert error(context, "heun(grid=edm)", 401)[0] < 3e-4


def test_a_plan_with_a_denoising_call_converges_too(context: Context) -> None:
    assert error(context, "dpmpp_2m(denoise_to_zero=true)", 400)[0] < 1e-4


def test_numbers_are_those_of_known_differences(context: Context) -> None:
    sizes = np.linspace(0.01, 0.5, SAMPLES)
    x = solve(context, 1.0, T_END) + sizes[:, None]
    mean, tail = TrajectoryError(context).evaluate(x, (1.0, T_END))
    assert mean.value == pytest.approx(rms(sizes))
    assert tail.value == pytest.approx(np.quantile(sizes, 0.95))
    again = np.random.default_rng(0).choice(sizes, (4000, SAMPLES))
    assert mean.se == pytest.approx(np.sqrt((again**2).mean(1)).std(), rel=0.1)
    assert tail.se == pytest.approx(np.quantile(again, 0.95, axis=1).std(), rel=0.25)


def test_a_few_samples_have_finite_errors(context: Context) -> None:
    x = solve(context, 1.0, T_END)[:10] + np.linspace(0.1, 0.2, 10)[:, None]
    assert all(np.isfinite(v.se) for v in TrajectoryError(context).evaluate(x, (1.0, T_END)))


def test_only_the_first_samples_are_kept_whatever_the_chunks(context: Context) -> None:
    x, metric = torch.randn(300, *GMM.shape), TrajectoryError(context)
    parts = [metric.extract(Chunk.of(start, x[start : start + 100], GMM)) for start in (0, 100, 200)]
    np.testing.assert_array_equal(np.concatenate(parts), x[:SAMPLES].flatten(1))


def test_the_solution_is_kept_in_a_file_and_used_again(context: Context) -> None:
    x, times = np.zeros((SAMPLES, 16)), (1.0, T_END)
    first = TrajectoryError(context).evaluate(x, times)
    (path,) = context.cache.iterdir()
    write_arrays(path, {"exact": read_arrays(path)["exact"] + 1})
    assert TrajectoryError(context).evaluate(x, times)[0].value != first[0].value
    for damage in (path.unlink, lambda: path.write_bytes(path.read_bytes()[:-100])):
        damage()
        assert TrajectoryError(context).evaluate(x, times) == first
        assert read_arrays(path)["exact"].shape == x.shape


def test_other_seeds_do_not_share_a_file(context: Context) -> None:
    x, times = np.zeros((SAMPLES, 16)), (1.0, T_END)
    values = {TrajectoryError(replace(context, seed=s)).evaluate(x, times)[0].value for s in (0, 1)}
    assert len(values) == len(list(context.cache.iterdir())) == 2


def test_a_solution_is_known_by_what_defines_it_whatever_its_last_bits(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, times = np.zeros((SAMPLES, 16)), (1.0, T_END)

    def known(of: Context, at: tuple[float, ...] = times) -> str:
        return str(TrajectoryError(of).evaluate(x, at)[0].reference["sha256"])

    here, (path,) = known(context), context.cache.iterdir()
    assert path.stem == f"trajectory-{here[:16]}"
    monkeypatch.setattr(module, "solve", lambda *asked: np.nextafter(solve(*asked), np.inf))
    assert known(replace(context, cache=tmp_path / "elsewhere")) == here
    assert len({here, known(replace(context, seed=1)), known(context, (0.9, T_END)), known(context, (1.0, 0.01))}) == 4


def test_a_flow_is_solved_from_pure_noise(tmp_path: Path) -> None:
    s, schedule = 0.7, solvers.RectifiedFlow(3.0)

    class OfGaussian(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            """E[eps - x_0 | x] where x_0 ~ N(0, s^2)."""
            a, b = (1 - t)[:, None], t[:, None]
            return (b - a * s**2) / (a**2 * s**2 + b**2) * x

    flow = Checkpoint("flow", "0" * 64, OfGaussian(), schedule, "velocity", (4,), kind="vector")
    x_T, t = flow.latents(0, 0, 9, 1.0).numpy(), schedule.t_end
    end = x_T * np.sqrt((1 - t) ** 2 * s**2 + t**2)
    of = Context(flow, 0, Task(), tmp_path, CPU)
    assert rms(solve(of, 1.0, t, 9) - end) < 1e-5
    on_the_data = end * (1 - t) * s**2 / ((1 - t) ** 2 * s**2 + t**2)
    assert rms(solve(of, 1.0, 0.0, 9) - on_the_data) < 1e-5


@pytest.mark.parametrize("samples", [1, 129])
def test_so_many_samples_cannot_be_looked_at(context: Context, samples: int) -> None:
    with pytest.raises(UsageError, match=f"samples={samples}: give 2 to 128"):
        TrajectoryError(context, samples)


def test_few_samples_cost_little_and_are_the_first(context: Context) -> None:
    many, few = solve(context, 1.0, T_END, 20), solve(context, 1.0, T_END, 5)
    assert rms(many[:5] - few) < 1e-4  # steps adapt to all samples together
    found = TrajectoryError(context, 5).evaluate(many.astype(np.float32), (1.0, T_END))
    assert [value.n for value in found] == [5]
    assert found[0].value < 1e-4
