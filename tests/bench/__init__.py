"""Tests of the harness: checkpoints, metrics, store, sweeps."""
