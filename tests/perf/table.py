"""results/speed.md from a benchmark's JSON: python tests/perf/table.py benchmark.json > results/speed.md."""

import json
import sys
from pathlib import Path

HEAD = """# What the solvers cost

Microseconds of a solver's own time a network call: a (1, 4, 64, 64) float32 latent, one CPU thread, a network that is
free, 20 calls, medians of interleaved rounds.  "Floor" is one linear combination of three tensors, timed in the same
rounds; "compiled" the whole plan as one graph of torch.compile (`solvers.graphs.compiled`); "diffusers" the scheduler
of the same method, its ratio being ours / theirs, uncompiled both.  Made by `make bench` on
"""

FRECHET = """
## A Frechet distance

Seconds for d = {d}, one thread, once the reference's factor is there ({factor_once:.1f} s), medians of interleaved
rounds:

| way | seconds | / ours |
| --- | --- | --- |
| ours | {ours:.2f} | 1 |
| eigenvalues of the product (torch-fidelity) | {eigenvalues:.2f} | {eigenvalues_over_ours:.1f} |
| matrix square root (clean-fid, pytorch-fid) | {square_root:.1f} | {square_root_over_ours:.1f} |
| ours with moments and each of {n:,} samples' influence | {ours_with_error:.2f} | |"""


def main(path: Path) -> None:
    data = json.loads(path.read_text())
    rows = [b["extra_info"] for b in data["benchmarks"] if "floor" in b["extra_info"]]
    machine = data["machine_info"]["cpu"]["brand_raw"]
    print(HEAD.rstrip(), f"{machine}, commit {data['commit_info']['id'][:7]}.\n")
    print(
        "| solver | \u00b5s a call | / floor | compiled \u00b5s | diffusers \u00b5s | ours / diffusers | states held |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        ours, theirs = row["ours"], row["diffusers"]
        beside = f"{theirs:.0f} | {ours / theirs:.2f}" if theirs else "\u2014 | \u2014"
        traced = f"{row['compiled']:.1f}" if row["compiled"] else "\u2014"
        print(f"| {row['name']} | {ours:.1f} | {ours / row['floor']:.2f} | {traced} | {beside} | {row['buffers']} |")
    (row,) = [b["extra_info"] for b in data["benchmarks"] if "square_root" in b["extra_info"]]
    print(FRECHET.format(**row))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
