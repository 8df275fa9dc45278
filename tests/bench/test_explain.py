"""`fewstep explain`: what it prints is what the plan does, and what it draws are the plan's coefficients."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import solvers
from bench import cli
from bench.explain import SCHEDULES, explain, table_of
from bench.explain_picture import check_picture, states_of, weights_of, write_picture
from solvers.plan import Combine, Evaluate
from tests.chaos.nest import Nest

LEARNED = Path(__file__).parents[2] / "results" / "tuning" / "learned"
PLANS = {  # of every kind: one step, multistep, singlestep, several calls, corrector, noise, averages, leapfrog
    "ddim": (4, "edm"), "dpmpp_2m": (8, "vp_linear"), "dpm_solver_3": (7, "edm"), "heun": (5, "edm"),
    "unipc": (6, "flow"), "dpmpp_2m_sde": (5, "edm"), "dpmpp_sde": (5, "ddpm"), "ghvb": (6, "edm"), "bdia": (5, "ddpm"),
    "pndm_f": (14, "ddpm"), "flow_heun": (5, "flow"), "dpmpp_3m(thresholding=static)": (4, "edm"),
    "heun(s_churn=20, s_tmax=50)": (5, "edm"), "ddim(afs=true)": (3, "edm"), "plms(denoise_to_zero=true)": (6, "edm"),
}  # fmt: skip


def plan_of(text: str) -> solvers.Plan:
    nfe, schedule = PLANS[text]
    plan = explain(text, nfe, None, schedule, "tuned").plan
    assert plan is not None
    return plan


@pytest.fixture(scope="module")
def dpmpp(forks: Nest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a process prints about dpmpp_2m, and where it ran."""
    folder = tmp_path_factory.mktemp("explain")
    ran = forks.answer("explain", "dpmpp_2m", "--nfe", "8", cwd=folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout, folder


def test_a_process_says_the_paper_the_facts_and_where_the_picture_is(dpmpp: tuple[str, Path]) -> None:
    said, folder = dpmpp
    assert "Lu et al. 2022, arXiv 2211.01095, Algorithms 1 and 2" in said
    assert "order 2, data prediction, 8 calls, 3 buffers, no noise" in said
    assert "lower_order_final=below_10" in said
    assert said.endswith("wrote explain-dpmpp_2m-nfe8.png\n")
    assert [path.name for path in folder.iterdir()] == ["explain-dpmpp_2m-nfe8.png"]
    assert (folder / "explain-dpmpp_2m-nfe8.png").read_bytes().startswith(b"\x89PNG")


def test_its_table_is_that_of_the_plan_a_sweep_would_run(dpmpp: tuple[str, Path]) -> None:
    plan = solvers.plan("dpmpp_2m", solvers.EDM(), 8)
    assert isinstance(plan, solvers.Plan)
    assert "\n".join(table_of(plan)) in dpmpp[0]


@pytest.mark.parametrize("text", PLANS)
def test_the_numbers_in_the_table_are_the_plans(text: str) -> None:
    plan = plan_of(text)
    _, *lines = table_of(plan)
    assert len(lines) == len(plan.instructions)
    for i, line in zip(plan.instructions, lines, strict=True):
        if isinstance(i, Combine):
            said = [float(c) for c in re.findall(r"([-+]?[\d.]+(?:e[-+]\d+)?) [xDevz]\d", line.partition(" = ")[2])]
            assert said == pytest.approx([c for c, _ in (*i.terms, *i.noise)], rel=1e-5)
        if isinstance(i, Evaluate):
            assert float(line.split()[2]) == pytest.approx(i.t, rel=1e-5)
    calls = [int(line.split()[0]) for line in lines if "network(" in line]
    assert calls == list(range(1, plan.nfe + 1))
    held = [int(line.partition(" = ")[0].split()[-2]) for line in lines]
    assert max(1, *held) == plan.buffers


@pytest.mark.parametrize("text", [t for t in PLANS if "thresholding" not in t])
def test_what_is_drawn_makes_the_sample_that_the_plan_makes(text: str) -> None:
    """On one number, with a network that is a line, the drawn states in turn lead to where the plan leads."""
    plan = plan_of(text)
    draws = np.linspace(-1, 1, plan.draws)
    values, calls = {0: 0.7}, list[float]()
    for i in plan.instructions:
        if isinstance(i, Evaluate):
            values[i.out] = 0.3 * values[i.state] + i.t
            calls.append(values[i.out])
        elif isinstance(i, Combine):
            values[i.out] = sum(c * values[r] for c, r in i.terms) + sum(c * draws[k] for c, k in i.noise)
    x = [0.7]
    for state in states_of(plan):
        total, weights = weights_of(state)
        mean = sum(w * calls[k - 1] for k, w in weights.items())
        noise = sum(c * draws[k] for k, c in state.of("z").items())
        x.append(sum(c * x[k] for k, c in state.of("x").items()) + total * mean + noise)
    assert x[-1] == pytest.approx(values[plan.instructions[-1].out], rel=1e-9, abs=1e-9)


def test_weights_are_those_of_the_textbook() -> None:
    def weights(text: str, row: int) -> list[float]:
        return [round(w, 4) for _, w in sorted(weights_of(states_of(plan_of(text))[row])[1].items())]

    assert weights("dpmpp_2m", 3) == [-0.5, 1.5]
    assert weights("heun", 1) == [0.5, 0.5]
    assert weights("pndm_f", 3) == [0.1667, 0.3333, 0.3333, 0.1667]
    assert weights("pndm_f", 12) == [-0.375, 1.5417, -2.4583, 2.2917]
    assert weights("flow_heun", 1) == [0.5, 0.5]


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_equal_plans_give_equal_pictures(ending: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    for path in (first, second):
        write_picture(path, plan_of("ddim"), "a <name> & $100")
    assert first.read_bytes() == second.read_bytes()


def test_another_coefficient_is_another_picture(tmp_path: Path) -> None:
    for name in ("dpmpp_2m", "dpmpp_2m(solver_type=taylor)"):
        plan = solvers.plan("dpmpp_2m", solvers.EDM(), 5, solver_type="taylor" if "taylor" in name else "dpmsolver")
        assert isinstance(plan, solvers.Plan)
        write_picture(tmp_path / f"{name}.svg", plan, "same")
    one, other = (path.read_text() for path in tmp_path.iterdir())
    assert one != other


def test_a_picture_in_svg_says_times_calls_and_weights(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.svg", plan_of("dpm_solver_3"), "dpm_solver_3 <here>")
    said = (tmp_path / "a.svg").read_text()
    assert "dpm_solver_3 &lt;here&gt;" in said
    assert ">80<" in said
    assert ">0.36<" in said or ">0.38<" in said
    assert "the sample" in said


@given(
    st.sampled_from(sorted(SCHEDULES)), st.sampled_from(["ddim", "dpmpp_2m", "unipc", "dpmpp_3m"]), st.integers(1, 40)
)
def test_every_state_of_a_consistent_solver_is_drawn_with_weights_of_sum_one(
    schedule: str, name: str, nfe: int
) -> None:
    plan = solvers.plan(name, SCHEDULES[schedule], nfe)
    assert isinstance(plan, solvers.Plan)
    for state in states_of(plan):
        assert sum(weights_of(state)[1].values()) == pytest.approx(1)


def test_a_student_is_explained_by_its_method_and_its_sampler() -> None:
    said = str(explain("ect_digits", 2, None, None, "tuned"))
    assert "A student of digits, distilled by ect" in said
    assert "Sampled by tcd: TCD" in said
    assert "2 calls" in said


@pytest.mark.parametrize("name", ["fitted", "usf", "dc_solver", "dpm_solver_v3", "autodiffusion"])
def test_what_was_learned_is_explained_from_its_files(name: str) -> None:
    found = explain(name, 5, "gmm", None, str(LEARNED))
    assert "learned from checkpoint" in str(found)
    assert found.plan is not None
    assert all(np.isfinite(list(state.terms.values())).all() for state in states_of(found.plan))


def test_an_adaptive_solver_says_that_it_has_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = explain("dpm_solver_12(rtol=0.1)", 8, None, "vp_linear", "tuned")
    assert found.plan is None
    assert "no fixed plan: steps and calls depend on the data" in str(found)
    assert "rtol=0.1" in str(found)


def test_time_shift_shows_its_bases_plan_and_says_so() -> None:
    found = explain("time_shift(ddim, window=30, cutoff=300)", 3, None, "ddpm", "tuned")
    assert "go to the times that states show" in str(found)
    assert found.plan is not None
    assert found.plan.method == "ddim"


CASES = {
    "dpmp_2m": "unknown solver 'dpmp_2m': did you mean 'dpmpp_2m'?",
    "dpmp_2m --schedule edm": "did you mean 'dpmpp_2m'?",
    "dpmpp_2m(grid=karas)": "did you mean 'karras'?",
    "dpmpp_2m(nfe=3) --schedule edm": "solver 'dpmpp_2m(nfe=3)'",
    "dpmpp_2m(": "not of the form",
    "heun --nfe 8": "heun cannot spend 8 calls: it can spend 5, 7, 9",
    "heun --nfe 8 --schedule edm": "heun cannot spend 8 calls",
    "ddim --nfe 0": "--nfe 0: give a whole number from 1 to 1000",
    "ddim --nfe few": "'few' is not a whole number",
    "ddim --schedule vp": "unknown schedule 'vp': known: edm, vp_linear",
    "ddim --schedule edm --checkpoint gmm": "give one of the two",
    "ddim --checkpoint gm": "unknown checkpoint 'gm': did you mean 'gmm'?",
    "ect_digits --nfe 3": "no 3 calls: the student was trained for",
    "ect_digits --nfe 2 --schedule edm": "a student belongs to its teacher",
    "fitted --nfe 5": "run `fewstep tune fitted`",
    "fitted --nfe 5 --schedule edm": "run `fewstep tune fitted`",
    "bdia --schedule flow": "no signal",
    "ddim --out picture.jpg": "--out picture.jpg: give a name that ends in .png, .svg, .pdf",
    "ddim --out folder.png": "--out folder.png is a folder",
    "ddim --out afile/a.png": "afile is a file, not a folder",
}


@pytest.mark.parametrize("arguments", CASES)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "afile").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fewstep", "explain", *arguments.split(" ")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert CASES[arguments] in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile", "folder.png"]


def test_a_picture_that_was_there_is_drawn_again(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")
    check_picture(tmp_path / "a.png")
    write_picture(tmp_path / "a.png", plan_of("ddim"), "ddim")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
