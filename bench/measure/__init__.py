"""Latency and memory of a sweep's cells, after all of them were sampled.

Protocol: the batch of best throughput is found once, with bare network calls; it is 1 unless a sweep asks for larger
ones.  The peak memory of each cell is taken at that batch, on a CPU in a process of its own.  Then one clean process
times all cells at batch 1 and at that batch, in rounds: each holds every cell once, in an order drawn from the sweep's
seed, so that drift of the machine hits all alike.  A trial is a whole trajectory from inputs made beforehand and,
beside it, as many bare network calls on the same inputs at the same times, guided alike; what remains, trajectory -
network, is the solver's overhead.  One draw of noise stands for all: how long a trajectory takes does not depend on
values, and drawing noise is no solver's work.
"""
