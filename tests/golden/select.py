"""Copy the golden cases of the solvers out of the full recording: python select.py SOURCE_FOLDER.

SOURCE_FOLDER holds vp.json, vp.npz, edm.json, edm.npz, ems.*.npz and dc_cpr.json.  Equal arrays, such as the shared
starts, are stored once: golden.npz holds arrays by digest, golden.json says which array is what in which case.  ems.npz
holds the model statistics that the runs of DPM-Solver-v3 used.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
LEFT_OUT = {
    "vp": r"$^",  # none
    "edm": r"(amed|epd|gits)-",  # arithmetic around trained predictors
}
ARRAYS = ("x_init", "x_final", "alpha", "sigma", "call_alpha", "call_sigma", "noise")
ARRAYS += ("eps_coef", "x_coef", "deis_coeff", "noise_args", "history", "timesteps")
ARRAYS += ("ems_index", "dc_ratios", "shifted_t", "shifted_t_next", "call_t")
STATISTICS = {  # what is kept of each recording of model statistics: the statistics, and of one all draws
    "vplin.unc": "lsb",
    "vplin.cfg4": "lsb",
    "disc.unc": "lsb",
    "disc.cfg4": "lsb",
    "small.vplin.unc": ("l", "s", "b", "l_d", "f", "f_d", "f_f", "f_f_d", "x0", "l_v", "l_z", "f_z"),
    "small.disc.unc": "lsb",
}
ENTRIES = ("id", "schedule", "options", "steps", "nfe", "guidance", "tolerance_max_abs", "notes")


def main(source: Path) -> None:
    arrays: dict[str, NDArray[np.float64]] = {}
    cases = []

    def keep(array: NDArray[np.float64]) -> str:
        digest = hashlib.sha256(array.tobytes() + str(array.shape).encode()).hexdigest()[:16]
        arrays[digest] = array
        return digest

    for family, left_out in LEFT_OUT.items():
        data = np.load(source / f"{family}.npz")
        for case in json.loads((source / f"{family}.json").read_text())["cases"]:
            if re.match(left_out, case["id"]):
                continue
            held = {n: keep(data[f"{case['id']}/{n}"]) for n in ARRAYS if f"{case['id']}/{n}" in data}
            if family == "vp":
                held["x_init"] = keep(data["x_T"])
            cases.append({"family": family} | {k: case[k] for k in ENTRIES if k in case} | {"arrays": held})
    arrays["noise_stream"] = np.load(source / "edm.npz")["_shared_kd/noise_stream"]  # the same in all runs
    np.savez_compressed(HERE / "golden.npz", **arrays)
    statistics = {f"{n}/{k}": np.load(source / f"ems.{n}.seed0.npz")[k] for n, held in STATISTICS.items() for k in held}
    statistics["small.vplin.unc/l_v"] = statistics["small.vplin.unc/l_v"].astype(np.int8)  # +1 and -1
    np.savez_compressed(HERE / "ems.npz", **statistics)
    (HERE / "dc_cpr.json").write_text(json.dumps(json.loads((source / "dc_cpr.json").read_text())) + "\n")
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (HERE / "golden.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} cases, {len(arrays)} arrays")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
