"""Names: near misses are named, files and entry points are found, nothing is imported before it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import solvers
from solvers.registry import Registry, UnknownNameError, did_you_mean

PLUGIN = '''"""Half a step of Euler's, for a test."""

from solvers import Tracer, solver


@solver("half", order=1, predicts="data", grids={"*": "uniform"})
def half(p: Tracer, grid, weight: float = 0.5) -> None:
    x = p.start()
    for i in range(grid.steps):
        x = p.state(weight * x + (1 - weight) * p.model(x, i))


not_a_solver = 3
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "plugin_of_a_test.py"
    path.write_text(PLUGIN)
    return path


def test_every_builtin_resolves_to_a_solver_of_its_name() -> None:
    assert set(solvers.names()) >= {"ddim", "heun", "dpmpp_2m"}
    assert [solvers.method(name).name for name in solvers.METHODS.builtin] == list(solvers.METHODS.builtin)


def test_every_builtin_says_in_a_sentence_what_it_is_and_where_it_is_from() -> None:
    for name in solvers.METHODS.builtin:
        assert "arXiv" in solvers.method(name).summary
        assert "\n" not in solvers.method(name).summary


@pytest.mark.parametrize(("wrong", "meant"), [("ddmi", "ddim"), ("huen", "heun"), ("dpmp_2m", "dpmpp_2m")])
def test_a_near_miss_is_asked_about_in_one_line(wrong: str, meant: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        solvers.plan(wrong, solvers.VPLinear(), 5)
    message = str(caught.value)
    assert message.startswith(f"unknown solver {wrong!r}: did you mean {meant!r}? known: ddim, ")
    assert "\n" not in message


def test_a_name_near_to_nothing_gets_the_list_alone() -> None:
    assert str(did_you_mean("fruit", "xyzzy", ["apple", "pear"])) == "unknown fruit 'xyzzy': known: apple, pear"


def test_a_solver_in_a_file_is_planned_and_sampled(plugin: Path) -> None:
    plan = solvers.plan(f"{plugin}:half", solvers.VPLinear(), 7, weight=0.25)
    assert (plan.method, plan.nfe, dict(plan.options)["weight"]) == ("half", 7, 0.25)


def test_a_solver_in_a_module_is_found(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin.parent)
    assert solvers.method("plugin_of_a_test:half").name == "half"
    assert solvers.method("solvers.heun:heun") is solvers.method("heun")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{folder}/missing.py:half", "No such file"),
        ("{folder}/plugin_of_a_test.py:whole", "has no attribute 'whole'"),
        ("{folder}/plugin_of_a_test.py:not_a_solver", "is not a solver: decorate it with @solver"),
        ("no_such_module_here:half", "No module named 'no_such_module_here'"),
        ("solvers.heun:hein", "has no attribute 'hein'"),
        ("solvers.heun:Grid", "is not a solver"),
    ],
)
def test_what_is_not_there_or_no_solver_is_one_line(plugin: Path, path: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as caught:
        solvers.method(path.format(folder=plugin.parent))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [":ddim", ".ddim:ddim"])
def test_a_path_without_a_module_is_an_unknown_name(path: str) -> None:
    with pytest.raises(UnknownNameError):
        solvers.method(path)


def test_entry_points_are_listed_after_the_builtins_and_loaded(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist = plugin.parent / "plugin_of_a_test-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text("[fewstep.fruit]\nzebra = plugin_of_a_test:half\nddim = nowhere:x\n")
    monkeypatch.syspath_prepend(plugin.parent)
    registry = Registry("fruit", "fewstep.fruit", {"ddim": "solvers.ddim:ddim"})
    assert registry.names() == ["ddim", "zebra"]
    assert registry.get("zebra").name == "half"
    assert registry.get("ddim") is solvers.method("ddim")  # a plug-in does not replace a built-in


def test_listing_names_imports_no_solver() -> None:
    code = """
import sys, solvers
names = solvers.METHODS.names()
modules = {path.partition(":")[0] for path in solvers.METHODS.builtin.values()}
assert {"ddim", "heun"} <= set(names) and not modules & set(sys.modules), modules & set(sys.modules)
solvers.method("heun")
assert modules & set(sys.modules) == {"solvers.heun"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
