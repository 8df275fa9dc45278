"""The gate: does what was recorded in a baseline still hold?  See docs/how-to/gate.md.

A baseline is one file.  What is deterministic must be the same: network calls, every coefficient and time of a plan,
what a plan does in float64 beside a plain loop over it, the error against recordings of official implementations.
Quality, from the same noise, must stay in its window.  Speed is a ratio to that plain loop over the plan of the
baseline, in the same rounds, so that it holds on any machine.
"""
