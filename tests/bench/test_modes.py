"""Ways to run a network: precision, layout, backend, batch; guidance as an axis."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import solvers
from bench.cell import Sampler, run
from bench.cells import Subjects, cells
from bench.checkpoints import Checkpoint, load
from bench.checkpoints.base import replica
from bench.errors import UsageError
from bench.mode import Mode
from bench.runner import prepare
from bench.spec import Cell, Sweep
from bench.store import Store
from tests.bench.common import make_metrics

CPU = torch.device("cpu")
GMM, DIGITS = load("gmm"), load("digits")
FIELDS = {"checkpoint": "digits", "solvers": ("ddim", "heun"), "nfe": (5,), "samples": 40, "latency": False}


def found(**fields: object) -> list[Cell]:
    return cells(Sweep(**(FIELDS | fields)), Subjects(DIGITS))[0]


def states(cell: Cell, checkpoint: Checkpoint = DIGITS) -> Tensor:
    sampler = Sampler(cell, checkpoint, CPU)
    return sampler.draw(0, *sampler.inputs(0, cell.samples))


def test_axes_multiply_and_each_cell_says_where_it_lies() -> None:
    of = found(guidance=(1.0, 2.0), precision=("fp32", "bf16"), layout=("contiguous", "channels_last"))
    assert len({cell.key for cell in of}) == len(of) == 2 * 2 * 2 * 2
    assert {cell.series for cell in of if cell.solver == "ddim"} == {
        f"ddim w={w} {precision} {layout}"
        for w in (1, 2)
        for precision in ("fp32", "bf16")
        for layout in ("contiguous", "channels_last")
    }


def test_one_value_of_an_axis_needs_no_name() -> None:
    (cell, _) = found(guidance=2.0, precision="bf16")
    assert cell.series == "ddim"
    assert (cell.to_dict()["precision"], cell.to_dict()["dtype"], cell.to_dict()["guidance"]) == ("bf16", "float32", 2)


def test_the_usual_way_leaves_keys_as_they_were_before_there_were_others() -> None:
    assert Mode().identity() == {"dtype": "float32"}
    assert Mode("fp64").identity() == {"dtype": "float64"}
    assert Mode("tf32", "channels_last", "compile").identity() == {
        "dtype": "float32", "precision": "tf32", "layout": "channels_last", "backend": "compile",
    }  # fmt: skip


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 1e-5, 1e-2), ("bf16", 1e-4, 0.1)])
def test_half_precision_is_the_networks_and_rounds_as_much_as_it_must(
    precision: str, least: float, most: float
) -> None:
    (exact, _), (half, _) = found(precision="fp64"), found(precision=precision)
    x, y = states(exact), states(half)
    assert (x.dtype, y.dtype) == (torch.float64, torch.float32)
    error = float((x - y).square().mean().sqrt())
    assert least < error < most
    single = float((x - states(found()[0])).square().mean().sqrt())
    assert single < least


@pytest.mark.parametrize("loaded", [torch.contiguous_format, torch.channels_last])
def test_an_image_network_runs_in_the_layout_that_is_asked_for(loaded: torch.memory_format) -> None:
    seen = []

    class Conv(nn.Conv2d):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append((x.is_contiguous(memory_format=torch.channels_last), self.weight.stride()))
            return super().forward(x)

    torch.manual_seed(0)
    network = Conv(3, 3, 3, padding=1).requires_grad_(False).to(memory_format=loaded)
    checkpoint = Checkpoint("conv", "0" * 64, network, solvers.VPLinear(), "noise", (3, 8, 8))
    sweep = Sweep(**(FIELDS | {"solvers": ("ddim",), "layout": ("contiguous", "channels_last"), "metrics": ("fid",)}))
    plain, last = cells(sweep, Subjects(checkpoint))[0]
    x, y = states(plain, checkpoint), states(last, checkpoint)
    assert (x - y).abs().max() < 1e-5 * x.abs().max()
    assert [first for first, _ in seen] == [False] * 5 + [True] * 5
    assert [seen[0][1], seen[-1][1]] == [(27, 9, 3, 1), (27, 1, 9, 3)]
    assert network.weight.is_contiguous(memory_format=loaded)


def test_a_compiled_network_gives_the_same_samples() -> None:
    class Line(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x) * t[:, None]

    torch.manual_seed(0)
    line = Checkpoint(
        "line", "0" * 64, Line(4, 4).requires_grad_(False), solvers.VPLinear(), "noise", (4,), kind="vector"
    )
    sweep = Sweep(**(FIELDS | {"solvers": ("ddim",), "backend": ("eager", "compile"), "metrics": ("energy",)}))
    eager, compiled = cells(sweep, Subjects(line))[0]
    sampler = Sampler(compiled, line, CPU)
    assert sampler.network._compiled_call_impl is not None
    assert torch.allclose(states(eager, line), sampler.draw(0, *sampler.inputs(0, 40)), rtol=1e-4)
    assert torch._dynamo.config.recompile_limit >= 64
    failed = pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit)  # or it would run eager and be called compiled
    with torch._dynamo.config.patch(recompile_limit=1), failed:
        sampler.draw(0, *sampler.inputs(0, 41))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"precision": "tf32"}, "precision = tf32: cpu has no such arithmetic"),
        ({"backend": "cuda_graph"}, "backend = cuda_graph: it needs an NVIDIA GPU, not cpu"),
        ({"checkpoint": "gmm", "precision": "fp16"}, "precision = fp16: this network is exact"),
        ({"prompts": "there-is-none.txt"}, "prompts there-is-none.txt cannot be read"),
    ],
)
def test_what_cannot_run_here_is_refused(tmp_path: Path, fields: dict, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        prepare(Sweep(**(FIELDS | fields)), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_an_engine_without_its_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="needs a C"):
        Mode(backend="compile").check(CPU, DIGITS.network)


def test_arithmetic_is_set_around_a_call_and_put_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    with Mode("tf32")._arithmetic():
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    with Mode("fp32")._arithmetic():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_replica_leaves_the_original_and_copies_no_more_than_it_must() -> None:
    before = {k: v.clone() for k, v in DIGITS.network.state_dict().items()}
    same, half = replica(DIGITS.network, CPU, torch.float32), replica(DIGITS.network, CPU, torch.bfloat16)
    last = Mode(layout="channels_last").ready(DIGITS.network, CPU)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    for key, tensor in DIGITS.network.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert tensor.dtype == torch.float32
        assert same.state_dict()[key].data_ptr() == tensor.data_ptr()
    assert last is not DIGITS.network


class Narrow(nn.Module):
    """The digits' network on a machine that has room for so many samples at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.network, self.room = DIGITS.network, room

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(x)}")
        return self.network(x, t, y=y)


def test_a_batch_that_does_not_fit_is_halved_and_counts_nothing_twice(tmp_path: Path) -> None:
    (cell, _) = found(samples=40, metrics=("frechet_digits", "frechet_pixels"))
    store = Store(tmp_path)
    whole, _ = run(cell, DIGITS, make_metrics(cell, DIGITS, store, CPU), CPU, 40)
    narrow, _ = run(cell, DIGITS, make_metrics(cell, DIGITS, store, CPU), CPU, 40, network=Narrow(12))
    assert (whole["sampling"]["batch"], narrow["sampling"]["batch"]) == (40, 10)
    assert narrow["counted_nfe"] == whole["counted_nfe"] == 5
    for a, b in zip(whole["metrics"], narrow["metrics"], strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-5)
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        run(cell, DIGITS, make_metrics(cell, DIGITS, store, CPU), CPU, 40, network=Narrow(0))


def test_a_sweep_over_guidance_measures_each_scale_against_its_own_ode(tmp_path: Path) -> None:
    sweep = Sweep(
        checkpoint="gmm", solvers=("ddim", "dpmpp_2m"), nfe=(10,), samples=64, guidance=(1.0, 2.0), latency=False,
        metrics=("trajectory",),
    )  # fmt: skip
    job = prepare(sweep, tmp_path / "run", "cpu")
    job.open()
    assert job.run("test") == []
    records = list(job.store.records())
    errors = {r["cell"]["series"]: r["metrics"][0]["value"] for r in records}
    assert errors.keys() == {"ddim w=1", "ddim w=2", "dpmpp_2m w=1", "dpmpp_2m w=2"}
    for w in (1, 2):
        assert errors[f"dpmpp_2m w={w}"] < 0.5 * errors[f"ddim w={w}"] < 0.5
    assert {r["forwards_per_sample"] for r in records if r["cell"]["guidance"] == 2} == {20}


def test_axes_stand_on_boards_and_in_the_table(tmp_path: Path) -> None:
    from bench.report import write_report

    job = prepare(Sweep(**(FIELDS | {"precision": ["fp32", "bf16"], "metrics": ["frechet_pixels"]})), tmp_path, "cpu")
    job.open()
    assert job.run("test") == []
    board = write_report(job.store).read_text()
    assert "| ddim bf16 |" in board
    assert "bf16, fp32" in board
    table = np.genfromtxt(
        tmp_path / "table.csv", delimiter=",", names=True, dtype=None, encoding="utf8", usecols=range(20)
    )
    assert {"precision", "layout", "backend", "series"} <= set(table.dtype.names)
    assert json.loads((tmp_path / "sweep.json").read_text())["precision"] == ["fp32", "bf16"]
