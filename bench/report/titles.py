"""Metrics as people read them: what each is called, and what stands beside its axis."""

import pandas as pd

TITLES = {  # in the order in which they are shown: title, axis
    "fid": ("FID, torch-fidelity's Inception", "FID"),
    "fid_clean": ("FID, clean-fid", "FID (clean-fid)"),
    "fid_legacy_tf": ("FID, clean-fid's legacy_tensorflow", "FID (legacy TensorFlow)"),
    "fid_legacy_pt": ("FID, clean-fid's legacy_pytorch", "FID (legacy PyTorch)"),
    "fd_dinov2": ("Fréchet distance, DINOv2 features", "Fréchet distance"),
    "frechet_digits": ("Fréchet distance, features of the digits classifier", "Fréchet distance"),
    "frechet_pixels": ("Fréchet distance, pixels", "Fréchet distance"),
    "frechet_exact": ("Fréchet distance to the exact moments", "Fréchet distance"),
    "kid": ("Kernel Inception distance", "KID"),
    "cmmd": ("CLIP maximum mean discrepancy", "CMMD"),
    "mmd": ("Maximum mean discrepancy, squared", "MMD²"),
    "energy": ("Energy distance", "energy distance"),
    "sliced_wasserstein": ("Sliced Wasserstein distance", "sliced Wasserstein distance"),
    "inception_score": ("Inception score", "inception score"),
    "precision": ("Precision", "precision"),
    "recall": ("Recall", "recall"),
    "density": ("Density", "density"),
    "coverage": ("Coverage", "coverage"),
    "diversity": ("Feature variance over the data's", "variance over the data's"),
    "lpips": ("LPIPS between pairs of samples", "LPIPS"),
    "trajectory_rmse": ("Trajectory error, RMSE", "RMSE to the exact ODE solution"),
    "trajectory_p95": ("Trajectory error, 95th percentile", "95th percentile of errors"),
}


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The metrics of a table, best known first."""
    there = table["metric"].unique()
    place = {name: i for i, name in enumerate(TITLES)}
    return sorted(there, key=lambda metric: (place.get(_plain(metric), len(place)), metric))


def title(metric: str) -> str:
    """What it is, with the options that are not the usual ones in brackets."""
    return TITLES.get(_plain(metric), (_plain(metric),))[0] + metric.removeprefix(_plain(metric)).replace("(", " (", 1)


def axis_label(metric: str) -> str:
    """What its numbers are."""
    return TITLES.get(_plain(metric), ("", metric))[1]


def _plain(metric: str) -> str:
    return metric.partition("(")[0]
