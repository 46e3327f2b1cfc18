"""A machine of its own for each test."""

from pathlib import Path

import pytest

from tests.preflight.nvidia import Machine, make_machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Puts GPUs into this test's machine: see nvidia.py."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return make_machine(tmp_path, monkeypatch)
