"""Bring a model to where others open it.

python -m scripts.export --model_tag=d38 --output=my-model
python -m scripts.export --model_tag=d38 \\
    --push_to_hub=OWNER/NAME
python -m scripts.export --from_nanochat=DIR --output=my-model
"""

from nanochat.common.cli import command
from nanochat.report.export import ExportSettings, export

if __name__ == "__main__":
    command(ExportSettings, export, __doc__)
