"""python -m bench.table FILE [FILE ...]: JSON of the benchmarks in, markdown tables of medians and ratios out.

A ratio beside a peer says how many times longer the peer took than ours in the same interleaved run; beside a limit it
says how many times longer ours took than the limit.
"""

import argparse
import sys
from pathlib import Path

from bench.records import Record, Results, read


def milliseconds(seconds: float | None) -> str:
    return "failed" if seconds is None else f"{seconds * 1e3:.3g} ms"


def rows_of(record: Record) -> list[str]:
    mine = record.ours.seconds
    rows = [f"| {record.case} | **{record.ours.name}** | {milliseconds(mine)} | {record.ours.failure or ''} |"]
    for peer in record.peers:
        verdict = f"ours {peer.seconds / mine:.2f}x as fast" if peer.seconds and mine else peer.failure or ""
        rows.append(f"| | {peer.name} | {milliseconds(peer.seconds)} | {verdict} |")
    if record.limit is not None:
        verdict = f"ours {mine / record.limit.seconds:.2f}x the limit" if mine else ""
        rows.append(f"| | limit: {record.limit.name} | {milliseconds(record.limit.seconds)} | {verdict} |")
    if record.head_ratio is not None:
        rows.append(f"| | the head alone: step minus body | | ours {record.head_ratio:.2f}x as fast as TRL |")
    peaks = [f"{v.name} {v.peak_bytes / 2**20:.0f} MiB" for v in record.variants if v.peak_bytes is not None]
    if peaks:
        rows.append(f"| | memory added at the peak | | {', '.join(peaks)} |")
    return rows


def table(results: Results) -> str:
    lines = [f"{results.where}; medians of interleaved rounds"]
    for operation, records in results.operations().items():
        lines += ["", f"### {operation}", "", "| case | | median | |", "|---|---|---|---|"]
        for record in records:
            lines += rows_of(record)
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON of pytest bench, or of bench.gpu.prove")
    try:
        for results in [read(path) for path in parser.parse_args(arguments).files]:
            print(table(results), end="\n\n")
    except (ValueError, OSError) as error:
        return f"bench.table: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
