"""The machine a benchmark ran on, the versions it used, and the memory of its process."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

TRANSPORT_PACKAGES = ("torch", "POT", "geomloss", "ott-jax", "flash-sinkhorn")


@dataclass(frozen=True)
class Machine:
    """What a benchmark ran on; `str` gives one line for a page, `short_name` a part of a file's name."""

    cpu: str  #: the processor's name
    cores: int  #: that the system has
    card: str = ""  #: the GPU's name; "" if there is none
    driver: str = ""  #: of the GPU
    torch: str = torch.__version__

    @property
    def short_name(self) -> str:
        """The processor and the card in a few words of small letters, digits and hyphens.

        >>> Machine("AMD EPYC 9554 64-Core Processor", 64, "NVIDIA H200").short_name
        'amd-epyc-9554-h200'
        >>> Machine("Intel(R) Xeon(R) Processor, family 6 model 207", 2).short_name
        'intel-xeon-6-207'
        """
        names = re.sub(r"\((R|TM)\)|\b\d+-Core\b|\bProcessor\b|\bCPU\b|@.*|\bfamily\b|\bmodel\b", " ", self.cpu)
        words = re.findall(r"[a-z0-9]+", f"{names} {self.card.replace('NVIDIA', '')}".lower())
        return "-".join(words) or "unnamed"

    def __str__(self) -> str:
        driver = f" (driver {self.driver})" if self.driver else ""
        return ", ".join(
            [self.cpu, f"{self.cores} cores", *([self.card + driver] if self.card else []), f"torch {self.torch}"]
        )


def this_machine() -> Machine:
    """The machine of this process."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return Machine(cpu_name(), os.cpu_count() or 1, card, driver_version() if card else "")


def machine() -> str:
    """One line: the processor, its number of cores, the GPU and its driver if there is one, and torch."""
    return str(this_machine())


def cpu_name(info: str | None = None) -> str:
    """The processor's name; where it says no number, as in many virtual machines, with its family and model.

    `info` is the text of /proc/cpuinfo, by default that of this machine.
    """
    file = Path("/proc/cpuinfo")
    if info is None:
        info = file.read_text() if file.exists() else ""
    facts: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    name = " ".join(facts.get("model name", "").split()) or platform.processor() or platform.machine()
    if "model" in facts and not re.search(r"\d", name):
        name += f", family {facts.get('cpu family', '?')} model {facts['model']}"
    return name


def driver_version() -> str:
    """The version of the NVIDIA driver; "" if the system does not tell it."""
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text()) if file.exists() else None
    return found.group() if found else ""


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
