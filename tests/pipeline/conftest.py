"""The pipeline's tests do not judge speed."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def _brief(brief: None) -> None: ...
