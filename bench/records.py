"""What the benchmarks wrote, as records: one per operation and case, with ours, the peers and the limit.

In: the JSON that bench/comparison.py writes, or bench.gpu.prove's result.json, which holds such JSON for each stage
that times. Out: Results; seconds, bytes and shares.

    share of the limit = seconds that the limit's rate needs for this work / seconds of ours

where the work is what the operation must do once: the logits read, rewritten, or so many GEMMs.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

OURS = "cer_ext"
_LIMIT = "limit: "


@dataclass(frozen=True)
class Variant:
    """One implementation in one case."""

    name: str
    seconds: float | None  # the median; None: it could not run
    spread_s: tuple[float, float] | None = None  # 20th and 80th percentile
    peak_bytes: int | None = None  # memory beyond what was allocated before
    entropy_error: float | None = None  # largest relative error against float64
    failure: str | None = None


@dataclass(frozen=True)
class Limit:
    """What was timed as the limit in the same run."""

    name: str
    seconds: float
    times: float | None  # how many such runs the operation's work amounts to; None: it is other work

    @property
    def needed_s(self) -> float | None:
        return None if self.times is None else self.times * self.seconds


@dataclass(frozen=True)
class Record:
    """One interleaved comparison."""

    operation: str
    case: str
    ours: Variant
    peers: tuple[Variant, ...]
    limit: Limit | None
    work: float  # what one call of ours must move or compute; 0: not stated
    unit: str  # of the work: "B" or "FLOP"
    head_ratio: float | None = None  # TRL's head time over ours, where whole steps were timed

    @property
    def variants(self) -> tuple[Variant, ...]:
        return (self.ours, *self.peers)

    @property
    def share(self) -> float | None:
        """Share of the limit that ours reaches; None where no limit of this work was timed."""
        if self.limit is None or self.limit.needed_s is None or self.ours.seconds is None:
            return None
        return self.limit.needed_s / self.ours.seconds


@dataclass(frozen=True)
class Results:
    """One file."""

    name: str  # of the file, without its extension
    where: str  # machine and versions
    records: tuple[Record, ...]

    def operations(self) -> dict[str, list[Record]]:
        """The records of each operation, in the order of the file."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.operation, []).append(record)
        return found


def read(path: Path) -> Results:
    """The file's records. Raises ValueError where it is not of bench/, or empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, {error}" if path.stat().st_size else f"{path}: is empty") from error
    kind = content if isinstance(content, dict) else {}
    if "stages" in kind:  # bench.gpu.prove: each stage that times holds what it wrote
        timed = [stage for stage in kind["stages"].values() if stage.get("benchmarks")]
        if not timed:
            raise ValueError(f"{path}: holds no timed record")
        kind = timed[0] | {"benchmarks": [record for stage in timed for record in stage["benchmarks"]]}
    if not {"benchmarks", "machine_info"} <= kind.keys():
        found = f"an object with {', '.join(sorted(kind))}" if kind else type(content).__name__
        wanted = "what `pytest bench --benchmark-json=FILE` or bench.gpu.prove writes"
        raise ValueError(f"{path}: expected {wanted}, got {found}")
    try:
        made = results(path.stem, kind)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a record is not as bench/ writes it: {type(error).__name__}: {error}") from error
    if not made.records:
        raise ValueError(f"{path}: holds no timed record")
    return made


def results(name: str, content: dict) -> Results:
    """What bench/comparison.py wrote, as records."""
    return Results(name, _machine(content["machine_info"]), tuple(_record(found) for found in content["benchmarks"]))


def sized(shape) -> str:
    return " x ".join(str(size) for size in shape)


def _limit(name: str, seconds: float, gemms: float | None) -> Limit:
    """`gemms`: how many products hidden @ weight.T the operation's work amounts to, where it is a head's."""
    name = name.removeprefix(_LIMIT)
    if name == "bare GEMM":
        return Limit(name, seconds, gemms)
    if name.startswith("copy"):  # a forward pass reads what a copy reads and writes
        return Limit("copy", seconds, 0.5)
    return Limit(name, seconds, 1.0 if name in ("read once", "rewrite in place") else None)


def _work(physical: dict) -> tuple[float, str]:
    return (physical["flops"], "FLOP") if physical.get("flops") else (physical.get("bytes", 0), "B")


def _machine(machine: dict) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "trl", "transformers") if name in machine)
    where = f"{machine['cpu']}, {machine['threads']} threads"
    if gpu := machine.get("gpu"):
        where = gpu["name"] + (f", driver {gpu['driver_version']}" if "driver_version" in gpu else "")
    clock = f"; {machine['clock']}" if "clock" in machine else ""
    return f"{'REHEARSAL, not a measurement: ' if machine.get('rehearsal') else ''}{where}; {versions}{clock}"


def _record(record: dict) -> Record:
    info = record["extra_info"]
    case = record["name"].split("[", 1)[1].rstrip("]") if "[" in record["name"] else ""
    gemms = None
    if head := re.fullmatch(r"(.+)-N(\d+)-D(\d+)-V(\d+)-?(.*)", case):  # shapes.Head, then the other parameters
        shape = [int(size) for size in head.groups()[1:4] if int(size)]
        gemms = info["physical"].get("flops", 0) / (2 * shape[0] * shape[1] * shape[-1])
        rest = [part for part in head[5].split("-") if part and part not in record["group"]]
        case = ", ".join([head[1], sized(shape), *rest])
    peaks = info.get("peak_bytes", {}) | info.get("step_peak_bytes", {})
    failures, times = info.get("failures", {}), {OURS: info["median_s"], **info["peers_s"]}

    def variant(name: str) -> Variant:
        spread = info.get("spread_s", {}).get(name)
        return Variant(
            name,
            times.get(name),
            None if spread is None else tuple(spread),
            peaks.get(name),
            info.get("entropy_error", {}).get(name),
            failures.get(name),
        )

    limits = [name for name in times if name.startswith(_LIMIT)]
    work, unit = _work(info["physical"])
    return Record(
        record["group"],
        case,
        variant(OURS),
        tuple(variant(name) for name in [*info["peers_s"], *failures] if not name.startswith(_LIMIT)),
        _limit(limits[0], times[limits[0]], gemms) if limits else None,
        work,
        unit,
        info.get("head_ratio"),
    )
