"""As nanochat.preflight.measure where a device hangs in a product; torch, which is slow to begin, is left out."""

import json
import sys
import time
from pathlib import Path

Path(json.loads(sys.argv[1])["path"]).write_text('{"rank": 0, "local_rank": 0, "node": 0, "torch": "2.13.0", "at": "a product"}')
time.sleep(600)
