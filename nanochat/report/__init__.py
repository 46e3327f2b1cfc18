"""The report of a run: what was asked for, what it took, how good the model is."""
