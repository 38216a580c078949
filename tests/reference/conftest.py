"""Skips the folder without torch, keeps torch to one thread, and is patient: two cores may be shared."""

import importlib.util

import pytest

from router.cli import children
from tests.shell import rig

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_*.py"]

PATIENCE_S = 100.0
"""Loading torch takes half a minute on a machine with ten times more work than cores."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(children, "READY_TIMEOUT_S", PATIENCE_S)
