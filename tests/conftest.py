"""Every test runs on one CPU thread, offline; the end of a run says how many slow tests it left out."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

torch.set_num_threads(1)

pytest_plugins = ["helpers.text_fixtures"]


def pytest_terminal_summary(terminalreporter):
    left_out = sum("slow" in item.keywords for item in terminalreporter.stats.get("deselected", ()))
    if left_out:
        terminalreporter.write_line(f"{left_out} slow tests were not run: python -m pytest -m slow runs them")
