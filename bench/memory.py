"""Resident memory of this process as Linux counts it: to measure what a call adds at its peak."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """VmHWM begins again from here."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak since it was forgotten)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024
