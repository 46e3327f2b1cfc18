"""Talking to a model: the terminal, the page, the HTTP API."""
