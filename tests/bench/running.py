"""A sweep's process for tests of who watches: it leaves in a results folder what a sweep does, cell after cell.

    python -m tests.bench.running FOLDER SECONDS_A_BLOCK [CELL]

It begins when it is given a line.  Its third cell fails; in the cell of this number it is killed.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from bench.log import RunLog
from bench.store import Store

SOLVERS, NFE, SAMPLES, BLOCK = ("ddim", "evil\x1b[31m\n[red]name"), (5, 10, None), 400, 100
CELLS = {f"{i:064x}": [s, n] for i, (s, n) in enumerate((s, n) for s in SOLVERS for n in NFE)}
DEFINITION = {"checkpoint": "gmm", "digest": "d" * 64, "samples": SAMPLES, "cells": CELLS}
FAILS = list(CELLS)[2]


def main(folder: Path, seconds: float, killed_in: int) -> None:
    store, log = Store(folder), RunLog(folder)
    store.open(DEFINITION)
    log.write("sweep_started", cells=len(CELLS), pending=len(CELLS), engine="local", workers=1, command="fewstep sweep")
    sys.stdin.readline()
    for i, (key, (solver, _)) in enumerate(CELLS.items()):
        for start in range(0, SAMPLES, BLOCK):
            time.sleep(seconds)
            store.put_block(key, (start, BLOCK), {"x": np.zeros(3)})
            log.write("block_done", key=key, start=start, count=BLOCK, seconds=seconds)
            if i == killed_in:
                os.kill(os.getpid(), signal.SIGKILL)
        if key == FAILS:
            store.put_failure(key, {"cell": {}, "cause": "not finite: \x1b[2J400 of\n400 samples"})
            log.write("cell_failed", key=key, label=solver, cause="not finite")
        else:
            store.put(key, {"key": key}, {})
            store.drop_blocks(key)
            log.write("cell_done", key=key, label=solver, seconds={"network": seconds})
    log.write("sweep_ended", seconds=1.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else len(CELLS))
