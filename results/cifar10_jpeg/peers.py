"""Fewstep beside its peers: diffusers' schedulers on the same network, noise and labels, torch-fidelity's formula.

    python results/cifar10_jpeg/peers.py CHECKPOINT --device cuda --samples 10000 --batch 500 --nfe 5,10,20 --out DIR

writes DIR/peers.json and DIR/peers.md.  A row that peers.json holds already is not made again.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import NoReturn

from peers_rows import PAIRS, SIDES, Comparison, Row

from bench.environment import environment
from bench.errors import UsageError
from bench.files import nearest_folder, read_small, sha256, write_json, write_text
from bench.report.text import markdown, with_error
from solvers import UnknownNameError

NOTES = """\
- All rows: one network object in float32 without TF32, the same noise and labels.  EDM's schedulers call its U-Net and
  precondition by themselves, as in a pipeline; the others are given its data prediction.
- Both begin at the first sigma times the noise.  The EDM schedulers' `init_noise_sigma` would be sqrt(sigma_max^2 + 1),
  7.8e-5 of it more at sigma_max = 80.
- Fewstep's times are the scheduler's sigmas, in float32 as the coefficients that diffusers computes of them are;
  Fewstep's are float64.  That and the order of sums is why samples agree to float32's rounding only.  Heun magnifies it
  by (sigma_i - sigma_(i+1)) / (2 sigma_(i+1)), as it divides by sigma_(i+1): most where steps are few.
- All end on sigma 0 by a step of first order, which is the data prediction: `final_sigmas_type="zero"`.  With
  `"sigma_min"` the EDM schedulers' last two sigmas are equal but for rounding: a call is spent on a step of no length.
- Below 15 steps diffusers lowers the order of the step before the last as well, which is `lower_order_final=below_15`
  in Fewstep, whose default is below_10; UniPC does so at any number of steps in both.
- Heun's N steps take 2N - 1 calls, so of an even budget one call is left over.
- diffusers has no Heun or UniPC for EDM.  Both tell networks timesteps of a discrete schedule, which UniPC rounds to
  whole numbers, and here the network is told sigma instead.  UniPC's states are x / sqrt(1 + sigma^2), and are scaled
  back for each call.  Its sigma_min and sigma_max are arguments, while Heun takes them by `from_config` alone.
- `set_timesteps(sigmas=...)` of EDMEulerScheduler takes places on its ramp from 0 to 1, not sigmas: it is not used.
- Milliseconds are of sampling a batch, synchronised, both sides in every round by turns, after a warm-up; noise, the
  scheduler's `set_timesteps` and Fewstep's plan are made before.
"""


def table(rows: Sequence[Row]) -> str:
    """What was found, in Markdown."""
    s = rows[0]["settings"]
    head = [
        "diffusers", "Fewstep", "calls", "largest difference", "rms difference", f"{s['metric']}, diffusers",
        f"{s['metric']}, Fewstep", "Fewstep - diffusers", "ms a batch, diffusers", "ms a batch, Fewstep",
        "Fewstep / diffusers (quartiles)",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for r in rows:
        of, (low, ratio, high) = r["settings"]["pair"], r["ratio"]
        order = f", order {of['config']['solver_order']}" if of["config"] else ""
        each = [with_error(r[k]["value"], r[k]["se"]) for k in (*SIDES, "difference")]
        times = [*(f"{r['ms'][side]:.3g}" for side in SIDES), f"{ratio:.3f} ({low:.3f} to {high:.3f})"]
        apart = [f"{r['largest']:.1e}", f"{r['rms']:.1e}"]
        lines.append([of["scheduler"] + order, of["solver"], str(r["calls"]), *apart, *each, *times])
    beyond = sum(abs(r["difference"]["value"]) > 2 * r["difference"]["se"] for r in rows)
    formula = max(
        abs(r[side]["torch_fidelity"] - r[side]["value"]) / (r[side]["value"] or 1) for r in rows for side in SIDES
    )
    ratios, made = [r["ratio"][1] for r in rows], "`, `".join(dict.fromkeys(r["command"] for r in rows))
    about = f"""\
Made by `{made}` on {s["device"]}, {s["threads"]} CPU threads; {", ".join(map(" ".join, s["versions"].items()))}.
{s["checkpoint"]}, {s["samples"]:,} samples in batches of {s["batch"]:,}.  Differences of samples are in units of the
samples' root mean square; values are ± 1 standard error, their differences paired; times are medians.

- Samples differ by at most {max(r["largest"] for r in rows):.1e}, in root mean square by \
{max(r["rms"] for r in rows):.1e}.
- {beyond} of {len(rows)} differences of {s["metric"]} exceed two of their standard errors; the largest is \
{max(abs(r["difference"]["value"]) for r in rows):.1e}, and the
  smallest standard error of a value {min(r[side]["se"] for r in rows for side in SIDES):.1e}.
- torch-fidelity's formula on the same features, in float64, gives the same to {formula:.1e} of the value.
- Fewstep takes {min(ratios):.3f} to {max(ratios):.3f} of diffusers' time, {median(ratios):.3f} in the median of rows.
- Sigmas of the schedulers differ from Karras' grid in float64 by {max(r["grid"] for r in rows):.1e} of them at most.
"""
    return "\n".join(["# Fewstep beside diffusers and torch-fidelity\n", about, markdown(lines), "", NOTES])


def compare(asked: argparse.Namespace) -> None:
    """Make the rows that are not there yet, each kept as soon as it is known, then the table of those asked for.

    Raises UsageError and UnknownNameError.
    """
    comparison, path = Comparison(asked), nearest_folder(asked.out) and asked.out / "peers.json"
    rows, shown, made = kept(path), [], 0
    for pair in PAIRS:
        for steps in dict.fromkeys(map(pair.steps, asked.nfe)):
            plan = pair.plan(comparison.c, steps)
            about = {"pair": asdict(pair), "steps": steps, "plan": sha256(plan.to_json().encode())}
            settings = comparison.settings | about
            row = next((row for row in rows if row["settings"] == settings), None)
            if row is None:
                row = {"settings": settings, **comparison.row(pair, plan), "command": asked.command}
                now = datetime.now(UTC).isoformat(timespec="seconds")
                rows.append(row | {"environment": environment(comparison.device), "finished": now})
                write_json(path, {"rows": rows})
                made += 1
                print(f"{pair.scheduler}, {plan.nfe} calls: {row['largest']:.1e} apart at most", flush=True)
            shown.append(row)
    write_text(asked.out / "peers.md", table(shown))
    print(f"{made} rows made, {len(shown)} in {asked.out / 'peers.md'}")


def kept(path: Path) -> list[Row]:
    """The rows that are there; raises UsageError for a file of something else."""
    if not path.exists():
        return []
    try:
        rows: list[Row] = json.loads(read_small(path))["rows"]
        if not all(isinstance(row["settings"], dict) for row in rows):
            raise ValueError("its rows have no settings")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path} was not written by this script: {error!r}") from error
    return rows


class Parser(argparse.ArgumentParser):
    """Its errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def parse(given: Sequence[str]) -> argparse.Namespace:
    """The command line, and as what it is recorded: of a path that is absolute, its name alone."""
    parser = Parser(description="Fewstep beside diffusers and torch-fidelity.")
    parser.add_argument("checkpoint", help="a name, file or folder, whose network is preconditioned as EDM's are")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--samples", type=whole, default=10_000)
    parser.add_argument("--batch", type=whole, default=500)
    parser.add_argument("--rounds", type=whole, default=10, help="that are timed, if there are fewer batches")
    parser.add_argument("--nfe", type=lambda text: [whole(n) for n in text.split(",")], default=[5, 10, 20])
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(given)
    if asked.samples % asked.batch or asked.samples < 2:
        raise UsageError(f"--samples {asked.samples}: give 2 or more, a multiple of --batch {asked.batch}")
    words = [Path(word).name if Path(word).is_absolute() else word for word in given]
    asked.command = shlex.join(["python", "results/cifar10_jpeg/peers.py", *words])
    return asked


def main() -> None:
    """One line and exit code 2 for bad input."""
    try:
        compare(parse(sys.argv[1:]))
    except (UsageError, UnknownNameError) as error:
        print(f"peers: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
