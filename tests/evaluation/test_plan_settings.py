"""Settings that a comparison sets for each run are refused by name, with the option that sets them."""

from pathlib import Path

import pytest

from tavq_plugin.evaluation.plan import plan_of


@pytest.mark.parametrize(
    ("override", "mend"),
    [
        ("seed=3", "give --seeds 3 instead"),
        (" seed = 3", "give --seeds 3 instead"),
        ("seed", "give --seeds instead"),
        ("tavq.seed=3", "give --seeds 3 instead"),
        ("method=vqgan", "give --methods vqgan instead"),
        ("options.weight=3", "give them as --set METHOD.options.NAME=VALUE"),
        ("tavq.steps=3", "give --set steps for all methods"),
    ],
)
def test_a_reserved_setting_is_refused_with_the_option_to_give(tmp_path: Path, override: str, mend: str):
    with pytest.raises(ValueError, match=mend):
        plan_of(out=tmp_path / "out", overrides=[override])
    assert not (tmp_path / "out").exists()
