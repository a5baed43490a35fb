"""Register the toy method 'noisy' for the trainer's tests."""

import pytest
from helpers.toy_corpus import registered


@pytest.fixture(scope="module", autouse=True)
def noisy():
    with registered():
        yield
