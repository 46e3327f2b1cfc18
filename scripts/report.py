"""Write report.md of a run.

python -m scripts.report
python -m scripts.report --model_tag=d38
"""

from nanochat.common.cli import command
from nanochat.report.report import ReportSettings, report

if __name__ == "__main__":
    command(ReportSettings, report, __doc__)
