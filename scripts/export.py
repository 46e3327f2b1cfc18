"""Bring a model to where others open it: `python -m scripts.export --push_to_hub OWNER/NAME`."""

from nanochat.common.cli import command
from nanochat.report.export import ExportSettings, export

if __name__ == "__main__":
    command(ExportSettings, export)
