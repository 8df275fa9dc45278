"""Do the errors of Fréchet distances say what they promise?  Simulated: samples whose true distance is known.

    python results/calibration/run.py

writes table.csv, coverage.md, coverage.png, coverage.svg and runs.json beside itself.  Every repetition goes through
the code that measures cells; features are Gaussian or a mixture of four, the reference their exact moments.
"""

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations, product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from bench.environment import environment
from bench.files import write_json, write_text
from bench.metrics.gaussian import Gaussian, Moments, distance, frechet, richardson
from bench.rank import letters
from bench.report.plots import COLOURS, STYLE, save
from bench.report.text import markdown as grid_of
from bench.stats import Estimate, Floats, difference, holm, parts_of

REPETITIONS = 1000
CASES = {"far": (0.5, 1.3), "near": (0.1, 1.05), "equal": (0.0, 1.0)}  # shift of the mean, scale: samples to reference
WIDTHS, RATIOS, KINDS = (8, 32), (4, 8, 16, 50), ("Gaussian", "mixture")
EQUALS = 4  # solvers of equal quality, whose samples differ by a tenth of the variance
COVERAGES = {
    "expectation": "the expectation at N: value ± t s.e.",
    "limit": "the true distance: extrapolated value ± t s.e.",
    "difference": "the difference of two cells that share noise",
}
BAND = (0.93, 0.97)


@dataclass(frozen=True)
class Setting:
    """Samples of `kind` in d dimensions, `ratio` times d of them, as far from the reference as `case` says."""

    kind: str
    case: str
    d: int
    ratio: int

    @property
    def n(self) -> int:
        return self.ratio * self.d

    @property
    def world(self) -> tuple[Gaussian, Callable[[np.random.Generator], Floats], float]:
        """The reference, a draw of samples (n, d), and the true distance between their distributions."""
        fixed = np.random.default_rng(self.d)
        mixing = fixed.normal(size=(self.d, self.d)) / self.d**0.5
        within = mixing @ mixing.T + 0.1 * np.eye(self.d)
        centres = fixed.normal(size=(4, self.d)) * (self.kind == "mixture")
        centres -= centres.mean(0)
        covariance, factor = within + centres.T @ centres / 4, np.linalg.cholesky(within)
        shift, scale = CASES[self.case]

        def draw(rng: np.random.Generator) -> Floats:
            x = rng.normal(size=(self.n, self.d)) @ factor.T + centres[rng.integers(4, size=self.n)]
            return np.asarray(scale * x + shift)

        reference = Gaussian(np.zeros(self.d), covariance, {})
        return reference, draw, distance(Moments(2, np.full(self.d, shift), scale**2 * covariance), reference)


def estimate(x: Floats, reference: Gaussian) -> Estimate:
    """As a record's value is made."""
    value, influence = frechet(x, reference)
    return Estimate(value, float(influence.std(ddof=1) / len(x) ** 0.5), len(x), parts=parts_of(influence))


def simulate(setting: Setting, repetitions: int) -> dict[str, float]:
    """Coverage of 95 % intervals, errors claimed over true ones, and how often equals are told apart."""
    reference, draw, truth = setting.world
    seed = [setting.d, setting.ratio, KINDS.index(setting.kind), list(CASES).index(setting.case)]
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame([_once(draw(rng), reference, rng) for _ in range(repetitions)])
    t = stats.t.ppf(0.975, rows["dof"])
    error = {
        "expectation": rows["value"] - rows["value"].mean(),
        "limit": rows["limit"] - truth,
        "difference": rows["difference"] - rows["difference"].mean(),
    }
    return (
        {"truth": truth, "bias": rows["value"].mean() - truth, "bias_limit": error["limit"].mean()}
        | {name: float((e.abs() <= t * rows[f"{name}_se"]).mean()) for name, e in error.items()}
        | {f"{name}_se_over_sd": rows[f"{name}_se"].pow(2).mean() ** 0.5 / e.std() for name, e in error.items()}
        | {name: rows[name].mean() for name in ("untied", "split")}
        | {"pairing": rows["value"].std() / rows["difference"].std()}
    )


def _once(x: Floats, reference: Gaussian, rng: np.random.Generator) -> dict[str, float]:
    """One repetition: a cell, another from the same noise, and solvers of equal quality."""

    def noise() -> Floats:
        return rng.normal(size=x.shape)

    cell, other = estimate(x, reference), estimate(1.03 * x + 0.03 + 0.05 * noise(), reference)
    limit, left = richardson(x, reference, cell.value) or (np.nan, np.nan)
    gap = difference(cell, other)
    equals = {name: estimate(x + 0.3 * noise(), reference) for name in map(str, range(EQUALS))}
    pairs = {(a, b): difference(equals[a], equals[b]) for a, b in combinations(equals, 2)}
    adjusted = holm([pair.p for pair in pairs.values()])
    groups = letters(list(equals), dict(zip(pairs, adjusted, strict=True)))
    return {
        "value": cell.value,
        "expectation_se": cell.se,
        "dof": len(cell.parts) - 1,
        "limit": limit,
        "limit_se": float(np.hypot(cell.se, left)),
        "difference": gap.value,
        "difference_se": gap.se,
        "untied": float(np.mean([not pair.tie for pair in pairs.values()])),
        "split": float(len(set("".join(groups.values()))) > 1),
    }


def settings() -> Iterator[Setting]:
    for kind, case, d, ratio in product(KINDS, CASES, WIDTHS, RATIOS):
        yield Setting(kind, case, d, ratio)


def markdown(table: pd.DataFrame, repetitions: int) -> str:
    """The coverages, and how often equals are told apart, N/d across."""
    shown = COVERAGES | {
        "untied": "two equal solvers called no tie (|difference| > 2 s.e.); 4.7 % were exact",
        "split": f"{EQUALS} equal solvers in more than one group (Holm at 5 %)",
    }
    error = 100 * (0.95 * 0.05 / repetitions) ** 0.5
    parts = [
        f"Percent of {repetitions:,} repetitions (± {error:.1f} where 95 is exact); bold: outside 93 to 97.  far, "
        "near, equal: samples shifted and scaled by 0.5 and 1.3, 0.1 and 1.05, not at all.",
    ]
    for name, about in shown.items():
        head = ["features", "d", *(f"N/d = {ratio}" for ratio in RATIOS)]
        lines = [head, ["---"] * len(head)]
        for (kind, case, d), rows in table.groupby(["kind", "case", "d"], sort=False):
            values = rows.set_index("ratio")[name]
            outside = [name in COVERAGES and not BAND[0] <= values[ratio] <= BAND[1] for ratio in RATIOS]
            text = [f"{100 * values[ratio]:.1f}" for ratio in RATIOS]
            bold = [f"**{t}**" if out else t for t, out in zip(text, outside, strict=True)]
            lines.append([f"{kind}, {case}", str(d), *bold])
        parts += [f"### {about[0].upper()}{about[1:]}", grid_of(lines)]
    return "\n\n".join(parts) + "\n"


def figure(table: pd.DataFrame, repetitions: int) -> Figure:
    """Coverage against N/d: a row a kind of features, a column a quantity."""
    found = Figure(figsize=(16, 8.4), layout="constrained")
    panels = found.subplots(len(KINDS), len(COVERAGES), sharex=True, sharey=True)
    for (kind, (name, about)), axes in zip(product(KINDS, COVERAGES.items()), panels.flat, strict=True):
        axes.axhspan(100 * BAND[0], 100 * BAND[1], color="#dddddd", zorder=0)
        axes.axhline(95, color="#888888", linewidth=0.8)
        _curves(axes, table[table["kind"] == kind], name, repetitions)
        axes.set_title(f"{kind}: {about}", fontsize=11)
        axes.set_xscale("log")
        axes.set_xticks(RATIOS, [str(ratio) for ratio in RATIOS])
        axes.minorticks_off()
    found.supxlabel("samples over features, N/d")
    found.supylabel("coverage of 95 % intervals in percent (± 1 binomial s.e.)")
    found.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside right center")
    return found


def _curves(axes: Axes, rows: pd.DataFrame, name: str, repetitions: int) -> None:
    for i, (case, d) in enumerate(product(CASES, WIDTHS)):
        here = rows[(rows["case"] == case) & (rows["d"] == d)]
        p = here[name]
        look = {"color": COLOURS[i // 2], "marker": "os"[i % 2], "linestyle": ("-", "--")[i % 2], "capsize": 3}
        beside = here["ratio"] * 1.03 ** (i - 2.5)  # so that bars do not cover each other
        axes.errorbar(beside, 100 * p, 100 * np.sqrt(p * (1 - p) / repetitions), label=f"{case}, d = {d}", **look)


def main() -> None:
    folder, began = Path(__file__).parent, datetime.now(UTC)
    found = pd.DataFrame([vars(s) | {"n": s.n} | simulate(s, REPETITIONS) for s in settings()])
    write_text(folder / "table.csv", found.to_csv(index=False, float_format="%.5g"))
    table = pd.read_csv(folder / "table.csv")  # so that what is shown is what is kept
    write_text(folder / "coverage.md", markdown(table, REPETITIONS))
    with mpl.rc_context(STYLE):
        save(folder / "coverage", figure(table, REPETITIONS))
    run = {
        "command": shlex.join(["python", "results/calibration/run.py"]),
        "started": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds()),
        "environment": environment(torch.device("cpu")),
    }
    write_json(folder / "runs.json", [run])


if __name__ == "__main__":
    sys.exit(main())
