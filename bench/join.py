"""python -m bench.join FILE [FILE ...] --output FILE: JSON of several runs on one machine in, one out.

A comparison that several runs have made is taken from the last of them. The machine and its versions must be the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.records import read


def join(contents: list[dict]) -> dict:
    """The contents of the files as one. Raises ValueError where they are of different machines or versions."""
    machine = contents[0]["machine_info"]
    for other in contents[1:]:
        if other["machine_info"] != machine:
            differing = sorted(
                key for key in machine | other["machine_info"] if machine.get(key) != other["machine_info"].get(key)
            )
            raise ValueError(f"expected runs of one machine with the same versions, got other {', '.join(differing)}")
    records = {record["fullname"]: record for content in contents for record in content["benchmarks"]}
    left_out = {name for content in contents for name in content.get("left_out", [])}
    timed = {record["name"] for record in records.values()}
    return {
        "machine_info": machine,
        "datetimes": [content["datetime"] for content in contents],
        "benchmarks": list(records.values()),
        "left_out": sorted(left_out - timed),
        "peers_not_here": {
            name: why for content in contents for name, why in content.get("peers_not_here", {}).items()
        },
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON of pytest bench")
    parser.add_argument("--output", type=Path, required=True, help="the file to write")
    given = parser.parse_args(arguments)
    try:
        for path in given.files:
            read(path)
        joined = join([json.loads(path.read_text(encoding="utf-8")) for path in given.files])
    except (ValueError, OSError) as error:
        return f"bench.join: {error}"
    for record in joined["benchmarks"]:  # single times are not needed: medians and spreads are
        record["stats"].pop("data", None)
    given.output.write_text(json.dumps(joined, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
