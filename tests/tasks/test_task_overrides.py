"""Settings of a task from the command line."""

from dataclasses import dataclass

import pytest

from tavq_plugin.tasks.task import TaskSettings
from tavq_plugin.tasks.task_overrides import changed_settings


@dataclass(frozen=True)
class OptionalSettings(TaskSettings):
    """A task's own settings with one that may be None."""

    top_k: int | None = None


def test_values_have_the_type_of_their_setting():
    changed = changed_settings(TaskSettings(), ["fit.learning_rate=1e-4", "model.embedding=indices", "quick=true"])
    assert changed.fit.learning_rate == 1e-4 and changed.model.embedding == "indices" and changed.quick is True
    assert changed.fit.steps == TaskSettings().fit.steps
    assert changed_settings(OptionalSettings(), ["top_k=5"]).top_k == 5
    assert changed_settings(OptionalSettings(top_k=5), ["top_k=none"]).top_k is None


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("model", "give name=value"),
        ("model=5", "is not a setting of a task"),
        ("model.width=wide", "give a value of type int"),
        ("quick=yes", "give true or false"),
        ("fit.steps.more=5", "is not a setting of a task"),
        ("fit.precision=fp8", "precision must be"),
    ],
)
def test_what_is_no_setting_is_refused(override, why):
    with pytest.raises(ValueError, match=why):
        changed_settings(TaskSettings(), [override])
