"""python -m bench.table FILE [FILE ...]: pytest-benchmark JSON in, markdown tables of medians and ratios out.

A ratio beside a peer says how many times longer the peer took than ours in the same interleaved run; beside a limit it
says how many times longer ours took than the limit.
"""

import argparse
import json
from pathlib import Path


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def extras(info: dict) -> list[str]:
    """What a benchmark of whole steps adds: the head alone (step minus body), and memory."""
    rows = []
    if "head_ratio" in info:
        rows.append(f"| | the head alone: step minus body | | ours {info['head_ratio']:.2f}x as fast as TRL |")
    if "step_peak_bytes" in info:
        peaks = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in info["step_peak_bytes"].items())
        rows.append(f"| | memory that a step adds at its peak | | {peaks} |")
    return rows


def rows_of(record: dict) -> list[str]:
    info = record["extra_info"]
    mine = info["median_s"]
    case = record["name"].split("[", 1)[1].rstrip("]") if "[" in record["name"] else ""
    rows = [f"| {case} | **cer_ext** | {milliseconds(mine)} | |"]
    for name, seconds in info["peers_s"].items():
        if name.startswith("limit"):
            verdict = f"ours {mine / seconds:.2f}x the limit"
        else:
            verdict = f"ours {seconds / mine:.2f}x as fast"
        rows.append(f"| | {name} | {milliseconds(seconds)} | {verdict} |")
    return rows + extras(info)


def table(result: dict) -> str:
    groups: dict[str, list[dict]] = {}
    for record in result["benchmarks"]:
        groups.setdefault(record["group"], []).append(record)
    machine = result["machine_info"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "trl", "transformers") if name in machine)
    where = machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} threads"
    lines = [f"{where}; {versions}; medians of interleaved rounds"]
    for group, records in groups.items():
        lines += ["", f"### {group}", "", "| case | | median | |", "|---|---|---|---|"]
        for record in records:
            lines += rows_of(record)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="written by pytest bench --benchmark-json=FILE")
    for path in parser.parse_args().files:
        print(table(json.loads(path.read_text())), end="\n\n")


if __name__ == "__main__":
    main()
