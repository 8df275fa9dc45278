"""The networks of EDM, EDM2 and ADM, written anew; they load the published tensors by name.

Karras et al. 2022, arXiv 2206.00364; Karras et al. 2024, arXiv 2312.02696; Dhariwal & Nichol 2021, arXiv 2105.05233.
"""

from bench.checkpoints.edm.load import load

__all__ = ["load"]
