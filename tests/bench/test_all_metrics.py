"""Every metric that needs no downloaded network, through whole sweeps."""

from pathlib import Path

import numpy as np
import pytest

from bench.errors import UsageError
from bench.metrics import reference
from bench.report import write_report
from bench.runner import prepare
from tests.bench.common import read_sweep

FEATURES = {"digits": "digits", "gmm": "states"}
METRICS = [
    "kid(features={})", "mmd", "energy", "cmmd(features={})", "prdc(features={}, k=3)", "sliced_wasserstein",
    "diversity",
]  # fmt: skip
HIGHER = {"precision", "recall", "density", "coverage", "inception_score"}


def sweep_of(checkpoint: str, metrics: list[str], samples: int = 120) -> dict[str, object]:
    return {
        "checkpoint": checkpoint, "solvers": ["ddim", "unipc"], "nfe": [5], "samples": samples, "metrics": metrics,
        "latency": False,
    }  # fmt: skip


@pytest.mark.parametrize("checkpoint", list(FEATURES))
def test_a_sweep_measures_them_all(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "EXACT_DRAWS", 1000)  # seconds less
    asked = [text.format(FEATURES[checkpoint]) for text in METRICS]
    if checkpoint == "digits":
        asked.append("inception_score(features=digits_logits)")
    job = prepare(read_sweep(None, sweep_of(checkpoint, asked)), tmp_path / "run", "cpu")
    job.open()
    assert job.run("a test", lambda cell, samples: None) == []
    records = sorted(job.store.records(), key=lambda record: record["cell"]["solver"])
    assert [record["cell"]["solver"] for record in records] == ["ddim", "unipc"]
    energy = []
    for record in records:
        found = {v["metric"].partition("(")[0]: v for v in record["metrics"]}
        assert found.keys() >= {"kid", "mmd", "energy", "cmmd", "recall", "coverage", "sliced_wasserstein", "diversity"}
        for name, v in found.items():
            assert np.isfinite(v["value"])
            assert v["se"] > 0
            assert (v["n"], v["better"] == "higher", len(v["parts"])) == (
                120, name in HIGHER, 20 if name in ("recall", "coverage") else 120,
            )  # fmt: skip
            assert ("k=3" in v["family"]) == (name in HIGHER - {"inception_score"})
        energy.append(found["energy"]["value"])
    assert energy[1] < energy[0] / 2  # unipc is the better one
    assert write_report(job.store).exists()


@pytest.mark.parametrize(
    ("metric", "samples", "line"),
    [
        ("prdc(features=digits)", 10, "10 samples are too few"),
        ("inception_score(features=digits_logits)", 12, "12 samples for 10 splits"),
        ("kid(features=states)", 100, "states"),
        ("mmd(features=nothing)", 100, "nothing"),
    ],
)
def test_what_gives_no_number_is_refused_before_anything_is_written(
    metric: str, samples: int, line: str, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, LookupError), match=line):
        prepare(read_sweep(None, sweep_of("digits", [metric], samples)), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()
