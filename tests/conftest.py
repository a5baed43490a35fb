"""Every test runs on one CPU thread, offline; the end of a run says how many slow tests it left out."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(1)

pytest_plugins = ["helpers.text_fixtures"]
SLOW_LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items):
    for item in items:
        if "slow" in item.keywords:
            item.config.stash[SLOW_LEFT_OUT] = item.config.stash.get(SLOW_LEFT_OUT, 0) + 1


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist: the main process prints the summary
        session.config.workeroutput["slow_left_out"] = session.config.stash.get(SLOW_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    left_out = getattr(node, "workeroutput", {}).get("slow_left_out", 0)  # every process collects all tests
    node.config.stash[SLOW_LEFT_OUT] = max(left_out, node.config.stash.get(SLOW_LEFT_OUT, 0))


def pytest_terminal_summary(terminalreporter, config):
    left_out = config.stash.get(SLOW_LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(f"{left_out} slow tests were not run: python -m pytest -m slow runs them")
