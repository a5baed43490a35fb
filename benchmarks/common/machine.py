"""The machine a benchmark ran on, the versions it used, and the memory of its process."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

TRANSPORT_PACKAGES = ("torch", "POT", "geomloss", "ott-jax", "flash-sinkhorn")


def machine() -> str:
    """The processor's name, its number of cores, and the GPU's name if there is one."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores{gpu}"


def versions(packages: Iterable[str] = TRANSPORT_PACKAGES) -> dict[str, str]:
    """The installed version of each package, or "absent"."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def process_kilobytes(key: str) -> int:
    """One figure of this process's memory (VmRSS, VmHWM), kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def reset_peak_memory() -> int:
    """Return freed memory to the system, reset the high-water mark (VmHWM), and return the current VmRSS, kB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory would hide a later peak
    Path("/proc/self/clear_refs").write_text("5")
    return process_kilobytes("VmRSS")
