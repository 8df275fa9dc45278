"""Few-step students of diffusion models: the losses that train them, one file a method, and one loop.

Imports solvers, never bench.
"""

from distill.method import Method
from solvers.registry import Registry

METHODS = Registry(
    "distillation method",
    "fewstep.students",
    {
        "cd": "distill.consistency:CD",
        "ct": "distill.consistency:CT",
        "ect": "distill.consistency:ECT",
        "lcm": "distill.lcm:LCM",
        "dmd2": "distill.dmd2:DMD2",
        "progressive": "distill.progressive:Progressive",
        "reflow": "distill.reflow:Reflow",
        "boss": "distill.reflow:BOSS",
        "tscd": "distill.tscd:TSCD",
        "agd": "distill.guidance:AGD",
    },
)

__all__ = ["METHODS", "Method"]
