"""The files that hold what a method learned: they read back as they were, and say what they do not serve."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import solvers
from solvers.found import FoundMethod
from solvers.learned import Cost, Learned, LearnedError, entries, holdings, pick, read

VP = solvers.VPLinear()


def learned(nfe: int | None = 5, guidance: float = 1.0, method: str = "dc_solver", **fields: object) -> Learned:
    about = Learned(
        method, "gmm", "d" * 64, VP, nfe, guidance, "unipc", "truncation error", 3, {"samples": 10, "lr": 0.1},
        Cost(100, 10, 20), ((50, 0.3), (150, 0.1)), {"ratios": [1.0, 1 / 3]}, {"l": np.arange(6.0).reshape(2, 3)},
    )  # fmt: skip
    return replace(about, **fields)


def write(folder: Path, *found: Learned) -> Path:
    for one in found:
        for name, data in one.to_files().items():
            (folder / name).write_bytes(data)
    return folder


def test_it_reads_back_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, learned())
    found = read(tmp_path / "nfe5-cfg1.json")
    assert np.array_equal(found.arrays["l"], np.arange(6.0).reshape(2, 3))
    assert replace(found, arrays={}, sha256="") == replace(learned(), arrays={})
    assert len(found.sha256) == 64


def test_cost_counts_a_tangent_once_more_and_a_backward_pass_twice() -> None:
    assert Cost(100, 10, 20).calls == 150
    assert (Cost(1, 2, 3) + Cost(10, 20, 30)) == Cost(11, 22, 33)


def test_a_plan_keeps_where_its_numbers_come_from(tmp_path: Path) -> None:
    made = solvers.plan("ddim", VP, 5)
    found = learned(method="fitted", values={"plan": json.loads(made.to_json())})
    write(tmp_path, found)
    plan = solvers.plan("fitted", VP, 5, tuned=str(tmp_path))
    assert plan.instructions == made.instructions
    assert (plan.method, plan.learned_from) == ("fitted", read(tmp_path / "nfe5-cfg1.json").provenance)
    assert solvers.Plan.from_json(plan.to_json()) == plan
    assert plan.learned_from.calls == 150


def test_arrays_of_another_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, learned())
    (tmp_path / "nfe5-cfg1.safetensors").write_bytes(b"other")
    with pytest.raises(LearnedError, match=r"nfe5-cfg1\.safetensors is not the file"):
        read(tmp_path / "nfe5-cfg1.json")
    (tmp_path / "nfe5-cfg1.safetensors").unlink()
    with pytest.raises(LearnedError, match=r"cannot read .*nfe5-cfg1\.safetensors: No such file"):
        read(tmp_path / "nfe5-cfg1.json")


def test_a_folder_that_was_not_given_or_holds_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(LearnedError, match="run `fewstep tune dc_solver` and give tuned=FOLDER"):
        entries("", "dc_solver", VP)
    with pytest.raises(LearnedError, match="holds nothing learned: run `fewstep tune dc_solver` first"):
        entries(tmp_path / "nowhere", "dc_solver", VP)


def test_what_there_is_reads_as_a_sentence() -> None:
    found = [learned(10), learned(5), learned(None, 4.0), learned(6, 7.5)]
    assert holdings(found) == "5, 10 calls at guidance 1; any budget at guidance 4; 6 calls at guidance 7.5"


def test_one_is_picked_by_budget_and_scale_alone() -> None:
    found = [learned(5), learned(5, 4.0), learned(6)]
    assert pick(found, 5, 4.0) is found[1]
    assert pick(found, 6, 4.0) is None
    assert pick(found, 7, 1.0) is None


@pytest.mark.parametrize("where", [{"grid": "logsnr"}, {"times": [1.0, 0.5]}, {"t_end": 0.1}])
def test_a_found_plan_takes_no_other_grid(tmp_path: Path, where: dict[str, object]) -> None:
    nfe = None if "times" in where else 5
    with pytest.raises(ValueError, match="found on times of its own"):
        FoundMethod("fitted", "a test").build(VP, nfe, **where, options={"tuned": str(tmp_path)})


def test_a_found_plan_serves_its_own_budget_alone(tmp_path: Path) -> None:
    write(tmp_path, learned(method="fitted"))
    with pytest.raises(solvers.BudgetError, match="holds 5 calls at guidance 1, not 6 at guidance 1"):
        solvers.plan("fitted", VP, 6, tuned=str(tmp_path))
