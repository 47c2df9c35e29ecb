"""One evaluation's evidence, for whatever a test wants to do to it."""

import pytest

from tests.posture.left_behind import Kept, measured


@pytest.fixture(scope="session")
def kept() -> Kept:
    return measured()
