"""The commands: one thin file each, run as `python -m scripts.NAME`."""
