"""CORE: how much a base model knows and can do, over 22 tasks (DCLM, arXiv 2406.11794)."""
