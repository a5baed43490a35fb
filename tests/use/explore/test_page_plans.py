"""What the page says of a plan."""

import base64
import zlib

import pytest
import torch

from tavq_plugin.ot.solve import solve
from tavq_plugin.use.explore.page_plans import image_plan, place_entropy, unit_figures


def test_the_entropy_of_places_is_that_of_the_transport():
    generator = torch.Generator().manual_seed(0)
    found = solve(torch.randn(1, 16, 4, generator=generator), torch.randn(1, 5, 4, generator=generator), epsilon=0.1)
    plan = found.plan()[0].T.unflatten(1, (4, 4))
    assert place_entropy(plan) == pytest.approx(found.plan_entropy.item(), abs=1e-3)


def test_units_rank_by_concentration_and_a_text_without_units_has_no_plan():
    plan = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    plan[2] = 0.1
    plan[1] = torch.eye(3)
    figures = unit_figures(plan / plan.sum())
    assert figures.rank[1] == 1 and figures.rank[2] == 4 and figures.entropy[2] == pytest.approx(1)
    assert figures.mass.sum() == pytest.approx(1) and figures.peak[1] == pytest.approx(3)
    none = image_plan(torch.zeros(0, 3, 3), [], ())
    assert (none["units"], none["entropy"]) == ([], None) and zlib.decompress(base64.b64decode(none["masses"])) == b""
