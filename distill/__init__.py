"""Networks trained here: the loop, and one file a loss.  Imports solvers, never bench."""
