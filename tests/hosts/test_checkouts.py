"""The conformance suite on hosts from checkouts; TAVQ_HOSTS names their folder."""

import os

import pytest
from helpers.checkouts import CHECKOUTS, build
from helpers.conformance import *  # noqa: F403

if not os.environ.get("TAVQ_HOSTS"):
    pytest.skip("TAVQ_HOSTS names no folder of checkouts (owner+name each)", allow_module_level=True)


@pytest.fixture(params=sorted(CHECKOUTS))
def case(request):
    return build(request.param)
