"""The trainer's tests know one method more."""

import pytest
from training.toy import registered


@pytest.fixture(scope="module", autouse=True)
def noisy():
    with registered():
        yield
