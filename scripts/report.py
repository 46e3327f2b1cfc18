"""Write report.md of a run: `python -m scripts.report`."""

from nanochat.common.cli import command
from nanochat.report.report import ReportSettings, report

if __name__ == "__main__":
    command(ReportSettings, report)
