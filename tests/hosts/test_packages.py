"""The conformance suite on every host from a package, tiny and with random weights."""

import pytest
from helpers.conformance import *  # noqa: F403
from helpers.tiny_hosts import HOSTS, build


@pytest.fixture(params=sorted(HOSTS))
def case(request):
    return build(request.param)
