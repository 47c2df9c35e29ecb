"""A path that is there only if somebody has run what a test planted."""

from pathlib import Path

import pytest


@pytest.fixture
def marker(tmp_path: Path):
    """The path that a payload would make; a test that leaves it behind has run the payload."""
    path = tmp_path / "the-payload-ran"
    yield path
    assert not path.exists()
