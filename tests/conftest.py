"""Options shared by all tests."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Scenarios hold their expectations; a behaviour change is reviewed as a text diff."""
    parser.addoption("--rewrite-scenarios", action="store_true", help="write what comes out into the files")
