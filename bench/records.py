"""What the benchmarks wrote, in one form: a record per operation and case, with ours, the peers and the limit.

In: JSON of pytest-benchmark as bench/ fills it (`pytest bench --benchmark-json=FILE`), or of bench.gpu.prove
(result.json) and bench.gpu.benchmarks (head.json, logits.json). Out: Results; seconds, bytes and shares.

    share of the limit = seconds that the limit's rate needs for this work / seconds of ours

where the work is what the operation must do once: the logits read, rewritten, or so many GEMMs.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

OURS, ONE_PASS = "cer_ext", "cer_ext, one pass"
_LIMIT = "limit: "
_STAGES = ("logits", "head")  # of bench.gpu.prove: those that time


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
    """The file's records. Raises ValueError where it is of neither kind, or empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, {error}" if path.stat().st_size else f"{path}: is empty") from error
    kind = content if isinstance(content, dict) else {}
    try:
        if "benchmarks" in kind and "machine_info" in kind:
            where = _pytest_machine(kind["machine_info"])
            records = [_pytest_record(record) for record in kind["benchmarks"]]
        elif "stages" in kind:
            where = _gpu_machine(kind)
            stages = [kind["stages"].get(name, {}) for name in _STAGES]
            records = [made for stage in stages for record in stage.get("records", []) for made in _gpu_records(record)]
        elif "records" in kind and "left_out" in kind:
            where = "machine not in this file (it is in result.json)"
            records = [made for record in kind["records"] for made in _gpu_records(record)]
        else:
            found = f"an object with {', '.join(sorted(kind))}" if kind else type(content).__name__
            wanted = "what `pytest bench --benchmark-json=FILE` or bench.gpu.prove writes"
            raise ValueError(f"{path}: expected {wanted}, got {found}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a record is not as bench/ writes it: {type(error).__name__}: {error}") from error
    if not records:
        raise ValueError(f"{path}: holds no timed record")
    return Results(path.stem, where, tuple(records))


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


# pytest-benchmark -----------------------------------------------------------------------------------------------------
def _pytest_machine(machine: dict) -> str:
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "trl", "transformers") if name in machine)
    where = machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} threads"
    return f"{where}; {versions}"


def _pytest_record(record: dict) -> Record:
    info = record["extra_info"]
    case = record["name"].split("[", 1)[1].rstrip("]") if "[" in record["name"] else ""
    gemms = None
    if head := re.fullmatch(r"(.+)-N(\d+)-D(\d+)-V(\d+)-?(.*)", case):  # shapes.Head, then the other parameters
        shape = [int(size) for size in head.groups()[1:4] if int(size)]
        gemms = info["physical"].get("flops", 0) / (2 * shape[0] * shape[1] * shape[-1])
        rest = [part for part in head[5].split("-") if part and part not in record["group"]]
        case = ", ".join([head[1], sized(shape), *rest])
    peaks = info.get("step_peak_bytes", {})
    work, unit = _work(info["physical"])
    limits = [name for name in info["peers_s"] if name.startswith(_LIMIT)]
    return Record(
        record["group"],
        case,
        Variant(OURS, info["median_s"], peak_bytes=peaks.get(OURS)),
        tuple(
            Variant(name, seconds, peak_bytes=peaks.get(name))
            for name, seconds in info["peers_s"].items()
            if name not in limits
        ),
        _limit(limits[0], info["peers_s"][limits[0]], gemms) if limits else None,
        work,
        unit,
        info.get("head_ratio"),
    )


# bench.gpu ------------------------------------------------------------------------------------------------------------
def _gpu_machine(result: dict) -> str:
    machine = result["machine"]
    gpu = (machine["gpu"] or "").splitlines()[1:]  # nvidia-smi's CSV, with a line of names
    where = ", driver ".join(gpu[0].split(", ")[:2]) if gpu else "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return f"{'REHEARSAL, not a measurement: ' if result['dry_run'] else ''}{where}; {versions}"


def _gpu_variant(name: str, record: dict) -> Variant:
    timing = record["timings"].get(name, {})
    return Variant(
        name,
        timing["median_ms"] / 1e3 if timing else None,
        (timing["p20_ms"] / 1e3, timing["p80_ms"] / 1e3) if timing else None,
        timing.get("peak_extra_bytes"),
        record["entropy_relative_error"].get(name),
        record["failures"].get(name),
    )


def _gpu_records(record: dict) -> list[Record]:
    """The record, and where the one-pass loss was timed in it, that as ours in a record of its own."""
    operation, dtype = re.fullmatch(r"(.*?)(?: (bfloat16|float16|float32|float64))?", record["operation"]).groups()
    shape = record["shape"]
    case = sized(shape) + (f", {dtype}" if dtype else "")
    names = list(dict.fromkeys([OURS, *record["timings"], *record["failures"]]))
    variants = {name: _gpu_variant(name, record) for name in names if not name.startswith(_LIMIT)}
    one_pass = variants.pop(ONE_PASS, None)
    limit = next((name for name in record["timings"] if name.startswith(_LIMIT)), None)
    work, unit = _work(record)
    one_gemm = 2 * shape[0] * shape[1] * shape[-1]

    def compared(operation: str, ours: Variant, peers: list[Variant], work: float) -> Record:
        seconds = None if limit is None else record["timings"][limit]["median_ms"] / 1e3
        found = None if limit is None else _limit(limit, seconds, work / one_gemm)
        return Record(operation, case, ours, tuple(peers), found, work, unit)

    ours = variants.pop(OURS)
    made = [compared(operation, ours, list(variants.values()), work)]
    if one_pass is not None:  # the same gradients with one product less
        operation = operation.replace("forward + backward", "loss and gradients in one pass")
        two_passes = Variant(f"{OURS}, two passes", ours.seconds, ours.spread_s, ours.peak_bytes, ours.entropy_error)
        made.append(compared(operation, one_pass, [two_passes, *variants.values()], work - one_gemm))
    return made
