"""Photographs: CIFAR-10 as JPEG copies, a denoiser of them and what trains it."""
