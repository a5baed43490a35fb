"""Every test runs on one CPU thread, offline."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

torch.set_num_threads(1)

pytest_plugins = ["helpers.text_fixtures"]
