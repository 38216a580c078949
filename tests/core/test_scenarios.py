"""Every story of the core, as text."""

from pathlib import Path

import pytest

from tests.core.scenario import run

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    """What comes out is what the file says."""
    came_out = run(path)
    if request.config.getoption("--rewrite-scenarios"):
        path.write_text(came_out)
    assert came_out == path.read_text()
