"""Copy the golden cases that the tests use out of the full recording: python select.py SOURCE_FOLDER.

Left out, because the official code there is another method than the one of its name:
- df-ddim-linspace: diffusers steps to t - T//N instead of the grid's next node, so state and model time disagree;
- df-dpmpp2m_sigma_min on the Karras and Lu grids: the last node is repeated and its call wasted;
- edmabl-*-ve-*: EDM's ablation sampler steps in t = sigma^2.

SOURCE_FOLDER holds vp.json, vp.npz, edm.json and edm.npz; the selection is by the patterns below.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PATTERNS = {
    "vp": r"dpmpp-S1-|ddim-gen|bdia-g0-|dpmpp-M2-(?!.*(taylor|thr))",
    "edm": r"edm-heun(?!_)|edm-heun_rho3|ds-(euler|heun)-(?!.*afs)|ds-dpmpp2m_nothr(_nolof)?-(?!.*afs)"
    r"|kd-(euler|heun|dpmpp_2m)-|df-(ddim-(?!linspace)|heun-)|df-dpmpp2m_(?!heun|eulerfinal|sigma_min-(karras|lu))|edmabl-edm-linear-none-euler",
}
KEEP = ("x_init", "x_final", "alpha", "sigma", "noise")  # "noise" only where a case draws it


def main(source: Path) -> None:
    arrays, cases = {}, []
    for family, pattern in PATTERNS.items():
        manifest = json.loads((source / f"{family}.json").read_text())["cases"]
        data = np.load(source / f"{family}.npz")
        if "x_T" in data:
            arrays["x_T"] = data["x_T"]
        for case in manifest:
            if not re.match(pattern, case["id"]):
                continue
            keep = (
                "id",
                "schedule",
                "variant",
                "options",
                "steps",
                "nfe",
                "guidance",
                "tolerance_max_abs",
                "noise_stream",
            )
            cases.append({"family": family} | {k: case[k] for k in keep if k in case})
            for name in KEEP:
                if f"{case['id']}/{name}" in data and (name != "noise" or "eta1" in case["id"]):
                    arrays[f"{case['id']}/{name}"] = data[f"{case['id']}/{name}"]
    np.savez_compressed(HERE / "golden.npz", **arrays)
    (HERE / "golden.json").write_text(json.dumps(cases, indent=0) + "\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
