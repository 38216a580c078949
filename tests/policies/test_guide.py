"""The example of the guide runs as it is printed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "write-a-policy.md"


def blocks(language: str) -> list[str]:
    """Code blocks of the guide in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture
def example(tmp_path: Path) -> ModuleType:
    """All Python of the guide, as one module."""
    path = tmp_path / "guide_example.py"
    path.write_text("\n".join(blocks("python")), encoding="utf-8")
    found = importlib.util.spec_from_file_location("guide_example", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_tests_of_the_guide_pass(example: ModuleType) -> None:
    """Those that the reader is told to write."""
    tests = [value for name, value in vars(example).items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()


def test_the_configuration_of_the_guide_builds_the_policy(example: ModuleType) -> None:
    """The TOML block belongs to the Python blocks."""
    (text,) = blocks("toml")
    assert example.make(text).name == "cheapest"
