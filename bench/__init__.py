"""The harness: what is swept, measured, stored and shown.  Imports solvers and distill."""
