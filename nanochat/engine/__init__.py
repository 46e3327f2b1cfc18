"""Inference: the key-value cache, sampling, generation."""
