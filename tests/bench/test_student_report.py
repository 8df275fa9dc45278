"""What the report says of students: columns, rows of boards, after how many images one has paid, the figure."""

from math import ceil, inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from bench.report import write_report
from bench.report.costs import cost_columns
from bench.report.frame import tidy
from bench.report.leaderboard import leaderboard
from bench.report.plots import curves, with_looks
from bench.report.scores import over_seeds
from bench.report.students import BreakEven, against_solvers, break_evens, paid_after, students
from bench.report.text import brief, duration, shown
from bench.runner import prepare
from bench.spec import Sweep
from bench.stats import parts_of
from bench.store import Store

N = 400
SHARED = np.random.default_rng(0).normal(size=N)  # the noise of all: ten times what is a cell's own
DEFINITION = {"checkpoint": "gmm", "digest": "d" * 12, "samples": N}
TRAINING = {
    "method": "cd(points=18)", "teacher": "gmm", "calls": 9000, "seconds": 512.3, "peak_memory_mib": 812.4,
    "device": "CPU, a quiet one", "threads": 2, "steps": 8000, "batch": 128, "finished": "2026-11-21",
}  # fmt: skip


def record(solver: str, nfe: int | None, mean: float, **about: Any) -> dict[str, Any]:
    """A solver's cell whose samples have this mean; two such differ with a standard error of 0.007, by pairs."""
    seed, better, forwards = about.pop("seed", 0), about.pop("better", "lower"), about.pop("forwards", nfe or 30)
    own = np.random.default_rng([seed, nfe or 0, *map(ord, solver)]).normal(size=N)
    x = mean + SHARED + 0.1 * (own - own.mean()) - SHARED.mean()
    value = {
        "metric": "frechet_exact", "value": mean, "se": float(x.std(ddof=1) / N**0.5), "n": N, "family": "f",
        "better": better, "reference": {"data": "some"}, "parts": parts_of(x - x.mean()), "at_infinity": None,
    }  # fmt: skip
    if calls := about.pop("tuning", 0):
        about["learned_from"] = {"calls": calls, "base": "ddim", "objective": "", "guidance": 1.0, "curve": []}
    cell = {
        "checkpoint": "gmm", "digest": "d" * 12, "solver": solver, "guidance": 1.0, "guidance_interval": None,
        "cfg_plus_plus": False, "samples": N, "seed": seed, "dtype": "float32", "order": 1, "nfe": nfe,
        "times": [1.0, 0.0],
    }  # fmt: skip
    return {
        "key": f"{solver}-{nfe}-{seed}-{about}", "cell": cell | about, "counted_nfe": nfe or 30,
        "forwards_per_sample": forwards, "metrics": [value],
        "environment": {"device": "CPU", "threads": 1, "commit": None},
    }  # fmt: skip


def student(mean: float, nfe: int = 1, name: str = "cd", training: dict[str, Any] | None = None, **about: Any) -> Any:
    return record(name, nfe, mean, student=True, training=TRAINING | (training or {}), **about)


def board(*records: dict[str, Any], timed: dict[str, dict[str, Any]] | None = None) -> pd.DataFrame:
    by_key = {r["key"]: timed[r["cell"]["solver"]] for r in records} if timed else None
    return over_seeds(tidy(records, by_key), records)


def found(*records: dict[str, Any], **others: Any) -> BreakEven:
    (only,) = break_evens(board(*records, **others))
    return only


def rival(even: BreakEven) -> tuple[str, float]:
    assert even.rival is not None
    return even.rival["solver"], even.rival["nfe"]


def lines(*records: dict[str, Any]) -> list[str]:
    return leaderboard(board(*records), pd.DataFrame(), DEFINITION).splitlines()


# Break-even, by hand.


def test_the_rival_is_the_cheapest_that_pairs_do_not_call_worse() -> None:
    worse = record("worse", 2, 1.05)  # by 0.05 where each value's own error is 0.05: told apart by pairs alone
    even = found(student(1.0), worse, record("equal", 5, 1.01), record("better", 10, 0.5))
    assert (rival(even), even.calls) == (("equal", 5), 9000 / 4)
    assert worse["metrics"][0]["se"] == pytest.approx(0.05, rel=0.1)


def test_without_pairs_errors_are_those_of_independent_values() -> None:
    records = [student(1.0), record("worse", 2, 1.05), record("equal", 5, 1.01)]
    for r in records:
        del r["metrics"][0]["parts"]
    assert rival(found(*records)) == ("worse", 2)  # 0.05 less than two times 0.07


@pytest.mark.parametrize(("better", "calls"), [("lower", 9000 / 19), ("higher", 9000 / 2)])
def test_what_is_better_is_the_metrics_matter(better: str, calls: float) -> None:
    high, low = record("high", 3, 2.0, better=better), record("low", 20, 0.5, better=better)
    assert found(student(1.0, better=better), high, low).calls == calls


def test_forwards_are_counted_not_calls() -> None:
    """A guided solver passes the network twice a call, a student that is told its scale once."""
    even = found(student(1.0, 4, guidance=2.0), record("ddim", 4, 1.0, guidance=2.0, forwards=8))
    assert even.calls == 9000 / 4


@pytest.mark.parametrize(
    ("tuning", "name", "calls"),
    [(300, "tuned", 8700 / 3), (8000, "plain", 9000 / 5), (20_000, "plain", 9000 / 5)],
)
def test_what_tuning_took_is_the_rivals_own_cost(tuning: int, name: str, calls: float) -> None:
    even = found(student(1.0), record("tuned", 4, 1.0, tuning=tuning), record("plain", 6, 1.0))
    assert (rival(even)[0], even.calls) == (name, calls)


def test_a_student_cheaper_than_its_rivals_tuning_has_paid_at_once() -> None:
    even = found(records := student(1.0), tuned := record("tuned", 4, 1.0, tuning=20_000))
    assert even.calls == 0
    assert any(line.endswith("| tuned | 4 | 1 ± 0.05 | 3 | at once | — |") for line in lines(records, tuned))


def test_a_student_that_saves_no_forwards_never_pays() -> None:
    records = [student(1.0, 4), record("as_cheap", 4, 1.0), record("cheaper", 2, 1.0), record("dear", 9, 0.1)]
    even = found(*records)
    assert (rival(even), even.calls) == (("cheaper", 2), inf)
    assert "| cd † | 4 | 1 ± 0.05 | cheaper | 2 | 1 ± 0.05 | -2 | never | — |" in lines(*records)


@pytest.mark.parametrize(("better", "best"), [("lower", "near"), ("higher", "far")])
def test_where_no_solver_is_as_good_the_best_stands_beside(better: str, best: str) -> None:
    sign = 1 if better == "lower" else -1
    means = {"near": 2.0 * sign, "far": 3.0 * sign} if better == "lower" else {"near": -3.0, "far": -2.0}
    records = [record(name, 5, mean, better=better) for name, mean in means.items()]
    records.append(student(sign * 1.0, better=better))
    even = found(*records)
    assert rival(even)[0] == best
    assert isnan(even.calls)
    (line,) = [line for line in lines(*records) if "no solver here is as good |" in line]
    assert f"| {best} | 5 | {means[best]:g} ± 0.05 | — |" in line


@pytest.mark.parametrize("axes", [{"guidance": 2.0}, {"precision": "bf16"}, {"backend": "compile"}, {"dtype": "bf16"}])
def test_only_solvers_that_share_the_axes_compare(axes: dict[str, Any]) -> None:
    alone = found(student(1.0, **axes), record("ddim", 5, 1.0))
    assert alone.rival is None
    both = found(student(1.0, **axes), record("ddim", 5, 1.0), record("other", 8, 1.0, **axes))
    assert (rival(both), both.calls) == (("other", 8), 9000 / 7)


def test_other_students_are_no_rivals_and_unknown_trainings_have_no_break_even() -> None:
    published = record("turbo", 1, 1.0, student=True, training=None)
    evens = break_evens(board(student(1.0), student(1.0, 2), published, record("ddim", 5, 1.0)))
    assert [(e.student["solver"], e.student["nfe"], e.calls) for e in evens] == [("cd", 1, 2250), ("cd", 2, 3000)]


def test_seeds_are_one_number() -> None:
    cells = [maker(seed) for seed in (0, 1) for maker in (
        lambda seed: student(1.0 + 0.5 * seed, seed=seed), lambda seed: record("ddim", 5, 1.5 - 0.5 * seed, seed=seed),
    )]  # fmt: skip
    even = found(*cells)
    assert (even.student["value"], even.calls) == (1.25, 2250)


def test_an_adaptive_solver_is_a_rival_by_its_mean_forwards() -> None:
    assert found(student(1.0), record("adaptive", None, 1.0)).calls == 9000 / 29


# Break-even, for any costs.

COSTS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20_000), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=25)  # records are built for each
@given(COSTS, st.integers(1, 8))
def test_it_is_the_first_image_at_which_no_rival_has_cost_less(costs: list[tuple[int, int, bool]], own: int) -> None:
    solvers = [
        record(f"s{k}", 5, 1.0 if good else 2.0, forwards=forwards, tuning=tuning)
        for k, (forwards, tuning, good) in enumerate(costs)
    ]
    even = found(student(1.0, own), *solvers)
    rivals = [(forwards, tuning) for forwards, tuning, good in costs if good]

    def paid(images: int) -> bool:
        return all(9000 + images * own <= tuning + images * forwards for forwards, tuning in rivals)

    if not rivals:
        assert isnan(even.calls)
    elif any(forwards <= own for forwards, _ in rivals):
        assert even.calls == inf
    else:
        assert paid(ceil(even.calls))
        assert even.calls == 0 or not paid(ceil(even.calls) - 1)


@given(st.integers(1, 10**9), st.integers(1, 50), st.integers(1, 50))
def test_it_is_positive_and_falls_with_what_a_rival_costs(calls: int, saved: int, more: int) -> None:
    assert 0 < paid_after(calls, saved + more) < paid_after(calls, saved) < paid_after(calls + 1, saved) < inf
    assert paid_after(calls, 0) == paid_after(calls, -saved) == inf


# By time.


def measured(ms: float, device: str = "CPU, a quiet one", threads: int = 2) -> dict[str, Any]:
    """A measurement of `ms` milliseconds a sample at the batch of best throughput, 64."""
    timed = dict.fromkeys(("iqr_ms", "p90_ms", "cpu_ms", "network_ms", "overhead_ms", "overhead_iqr_ms"), 1.0)
    return {
        "latency": [timed | {"batch": b, "median_ms": ms * b, "samples_per_s": 1e3 / ms} for b in (1, 64)],
        "memory": {"of": "peak resident set", "peak_mib": 1.0, "above_weights_mib": 1.0},
        "session": {"id": "s", "rounds": 5, "machine": {"device": device, "threads": threads}, "apart": {}},
    }


def by_time(
    of_student: dict[str, Any], of_solver: dict[str, Any], training: dict[str, Any] | None = None, **about: Any
) -> float:
    records = student(1.0, training=training), record("ddim", 5, 1.0, **about)
    return found(*records, timed={"cd": of_student, "ddim": of_solver}).seconds


GPU = {"device": "NVIDIA H100", "threads": 9}


def test_time_is_that_of_the_best_batch_where_the_training_was() -> None:
    assert by_time(measured(2.0), measured(10.0)) == pytest.approx(512.3 / 0.008)
    assert by_time(measured(2.0, GPU["device"]), measured(10.0, GPU["device"]), GPU) == pytest.approx(512.3 / 0.008)
    assert by_time(measured(10.0), measured(10.0)) == inf
    assert cost_columns(measured(2.0))["throughput_per_s"] == 500


@pytest.mark.parametrize(
    ("of_student", "of_solver", "others"),
    [
        (measured(2.0, threads=1), measured(10.0), {}),
        (measured(2.0), measured(10.0, threads=1), {}),
        (measured(2.0), measured(10.0, "CPU, another"), {}),
        (measured(2.0), measured(10.0), {"training": GPU}),
        (measured(2.0), measured(10.0), {"tuning": 10}),  # what that took is known in calls alone
    ],
)
def test_time_elsewhere_says_nothing(of_student: Any, of_solver: Any, others: dict[str, Any]) -> None:
    assert isnan(by_time(of_student, of_solver, **others))


def test_a_cell_that_was_not_measured_has_no_time() -> None:
    records = [student(1.0), record("ddim", 5, 1.0)]
    table = over_seeds(tidy(records, {records[0]["key"]: measured(2.0)}), records)
    (even,) = break_evens(table)
    assert (even.calls, isnan(even.seconds)) == (2250, True)


# Columns and boards.


def test_columns_are_empty_where_there_was_no_training() -> None:
    rows = tidy([student(1.0), record("ddim", 5, 1.0), record("turbo", 1, 1.0, student=True, training=None)])
    rows = rows.set_index("solver").filter(like="training_")
    assert rows.loc["cd"].to_dict() == {
        "training_method": "cd(points=18)", "training_teacher": "gmm", "training_device": "CPU, a quiet one",
        "training_calls": 9000, "training_seconds": 512.3, "training_threads": 2, "training_memory_mib": 812.4,
    }  # fmt: skip
    for name in ("ddim", "turbo"):
        assert rows.loc[name, ["training_method", "training_teacher", "training_device"]].tolist() == ["", "", ""]
        assert rows.loc[name, ["training_calls", "training_seconds", "training_memory_mib"]].isna().all()
    assert all(pd.api.types.is_float_dtype(rows[f"training_{k}"]) for k in ("calls", "seconds", "memory_mib"))


def test_the_section_says_what_training_took() -> None:
    table = board(student(1.0), student(0.9, 2), student(1.0, name="turbo", training=GPU), record("ddim", 5, 1.0))
    text = "\n".join(students(table))
    assert "| cd † | cd(points=18) | gmm | 9k | 8.54 min | CPU, a quiet one, 2 threads | 812 MiB | 1, 2 |" in text
    assert "| turbo † | cd(points=18) | gmm | 9k | 8.54 min | NVIDIA H100 | 812 MiB | 1 |" in text
    assert "better in `frechet_exact`" in text
    assert "| cd † | 1 | 1 ± 0.05 | ddim | 5 | 1 ± 0.05 | 4 | 2.25k | — |" in text


def test_without_a_known_training_there_is_no_section() -> None:
    ddim = record("ddim", 5, 1.0)
    assert students(board(ddim)) == students(board(ddim, record("turbo", 1, 1.0, student=True))) == []
    assert "†" not in "\n".join(lines(ddim))
    assert any(
        "what their training took is not known here" in s for s in lines(ddim, record("t", 1, 1.0, student=True))
    )


def test_a_metric_without_a_direction_has_no_break_even() -> None:
    text = "\n".join(students(board(student(1.0, better="neither"), record("ddim", 5, 1.0, better="neither"))))
    assert "## Students" in text
    assert "Break-even" not in text


def rows_of(text: list[str]) -> list[str]:
    start = text.index("| --- | --- | --- |") + 1
    return [line.split(" | ")[0].removeprefix("| ") for line in text[start:] if line.startswith("|")][:5]


def test_students_stand_under_solvers_marked_and_without_their_folders() -> None:
    long = "a_student(path='/home/of/somebody/with/long/folders/runs/best', guidance=1.0)"
    bare = "/home/of/somebody/runs/another/"
    text = lines(
        student(1.0, name=long), student(1.0, name=bare), record("ddim", 5, 1.0), record("zz", 5, 1.0), student(1.0)
    )
    assert rows_of(text) == ["ddim", "zz", "another/ †", "a_student(path='runs/best', guidance=1.0) †", "cd †"]
    assert not any("/home" in line for line in text)


def test_students_that_would_be_called_alike_keep_their_folders() -> None:
    names = ["cd(path='/mine/runs/best')", "cd(path='/yours/runs/best')", "cd(path='/yours/runs/last')"]
    text = lines(*[student(1.0, name=name) for name in names], record("ddim", 5, 1.0))
    assert rows_of(text)[:4] == ["ddim", f"{names[0]} †", f"{names[1]} †", "cd(path='runs/last') †"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("plug/in.py:solve(order=2)", "in.py:solve(order=2)"),
        ("dc_solver(tuned='results/tuning/learned/gmm/dc_solver')", "dc_solver(tuned='gmm/dc_solver')"),
        ("lcm(path='a/b/lora/')", "lcm(path='b/lora/')"),
        ("runs/cd", "cd"),
        ("runs/cd/", "cd/"),
        ("ddim w=1", "ddim w=1"),
        ("cd(path='best')", "cd(path='best')"),
    ],
)
def test_a_name_is_shown_without_its_folders(name: str, short: str) -> None:
    assert shown(name) == short


def test_a_students_number_is_bold_among_the_best() -> None:
    text = lines(student(1.0, 5), record("ddim", 5, 1.005), record("worse", 5, 1.5))
    assert "| cd † | **1 ± 0.05** |" in text
    assert "| ddim | **1 ± 0.05** |" in text
    assert "| worse | 1.5 ± 0.05 |" in text


@pytest.mark.parametrize(("calls", "text"), [(999_400, "999k"), (999_600, "1M"), (999.6e6, "1G"), (2.5e12, "2.5T")])
def test_large_numbers_change_their_unit_where_they_round_to_it(calls: float, text: str) -> None:
    assert brief(calls) == text


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (512.3, "8.54 min"), (8280, "2.3 h")])
def test_durations_are_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_students_change_no_solvers_looks() -> None:
    solvers = [record(name, 5, 1.0) for name in ("heun", "ddim", "unipc")]

    def looks(*records: dict[str, Any]) -> dict[str, dict[str, str]]:
        return {name: style for name, _, style in curves(with_looks(board(*records)))}

    alone, both = looks(*solvers), looks(*solvers, student(1.0), student(1.0, name="a_student"))
    assert {name: both[name] for name in alone} == alone
    assert list(both) == ["ddim", "heun", "unipc", "a_student", "cd"]
    assert len({tuple(style.values()) for style in both.values()}) == 5


def test_the_figure_shows_students_beside_each_other_and_the_best_solvers_by_name() -> None:
    solvers = [record(s, n, v) for s, n, v in (("ddim", 1, 9.0), ("heun", 1, 8.0), ("ddim", 2, 5.0), ("ddim", 4, 2.0))]
    own = [student(1.0 + k, n, name=f"s{k}") for k in range(3) for n in (1, 2)]
    axes = Figure().subplots()
    against_solvers(axes, with_looks(board(*solvers, *own)))
    assert [text.get_text() for text in axes.texts] == ["heun", "ddim"]  # not again at four calls
    (best,) = [line for line in axes.lines if line.get_label() == "the best of them"]
    assert list(best.get_ydata()) == [8, 5, 2]
    drawn = {c.get_label(): c.lines[0] for c in axes.containers}
    assert [list(line.get_ydata()) for line in drawn.values()] == [[1, 1], [2, 2], [3, 3]]
    places = np.array([line.get_xdata() for line in drawn.values()], float)
    assert (np.diff(places, axis=0) > 0).all()  # no two in one place
    assert (np.abs(np.log(places / [1, 2])) < np.log(2) / 4).all()  # each nearest to its own budget
    assert len({(line.get_color(), line.get_marker()) for line in drawn.values()}) == 3


@pytest.mark.parametrize("training", [TRAINING, None], ids=["known", "unknown"])
def test_a_run_with_a_student_has_a_whole_report(tmp_path: Path, training: dict[str, Any] | None) -> None:
    what = {"checkpoint": "gmm", "metrics": ("frechet_exact",), "samples": 40, "latency": False}
    sweep = Sweep(solvers=("ddim", "dpmpp_2m"), nfe=(2, 5), **what)
    job = prepare(sweep, tmp_path / "run", "cpu")
    job.open()
    assert job.run("a test", lambda cell, samples: None) == []
    store = Store(tmp_path / "run")
    real = next(r for r in store.records() if r["cell"]["solver"] == "dpmpp_2m" and r["cell"]["nfe"] == 5)
    cell = real["cell"] | {"solver": "cd", "series": "cd", "student": True, "nfe": 1, "training": training}
    store.put("a" * 64, real | {"key": "a" * 64, "cell": cell, "counted_nfe": 1, "forwards_per_sample": 1}, {})
    text = write_report(store).read_text()
    assert (
        (tmp_path / "run" / "students.png").exists() == (tmp_path / "run" / "students.svg").exists() == bool(training)
    )
    assert ("| cd † | 1 |" in text) == ("2.25k" in text) == bool(training)  # against itself, at five calls
    quality = (tmp_path / "run" / "quality.svg").read_text()
    assert "dpmpp_2m" in quality
    assert (">cd<" in quality) == (training is None)  # in one of the figures, whichever it is
    table = pd.read_parquet(tmp_path / "run" / "table.parquet")
    assert table["training_calls"].notna().sum() == bool(training)
