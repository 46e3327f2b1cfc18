"""Train your own 3B and 7B chat models: from raw text to a model that talks."""

__version__ = "0.1.0"
