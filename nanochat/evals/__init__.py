"""How good a model is: bits per byte of held-out text, samples."""
