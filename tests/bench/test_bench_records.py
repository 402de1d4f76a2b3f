"""Records and tables against the JSON they were read from, and what is said of files that hold none."""

from __future__ import annotations

import json
import re

import pytest

from bench import table
from bench.records import read


def test_pytest_records_hold_the_numbers_of_the_file(committed):
    written = json.loads(committed.read_text())["benchmarks"]
    results = read(committed)
    assert len(results.records) == len(written) > 0
    for record, source in zip(results.records, written, strict=True):
        info = source["extra_info"]
        times = {variant.name: variant.seconds for variant in record.peers}
        limits = {name: seconds for name, seconds in info["peers_s"].items() if name.startswith("limit: ")}
        assert record.operation == source["group"]
        assert record.ours.seconds == info["median_s"]
        assert times | limits == info["peers_s"]
        assert (record.limit is None) == (not limits)
        if record.limit is not None:
            assert limits == {f"limit: {record.limit.name}": record.limit.seconds}
        assert [record.work] == list(info["physical"].values())


def test_share_counts_the_gemms_that_the_work_amounts_to(committed):
    """from_hidden: 2 N D V per GEMM; one forward, in one pass two with a frozen weight and three with a trained one."""
    by_operation = read(committed).operations()
    one_pass = "from_hidden loss and gradients in one pass"
    for operation, gemms in (
        ("from_hidden forward", 1),
        (f"{one_pass}, frozen weight", 2),
        (f"{one_pass}, trained weight", 3),
    ):
        record = by_operation[operation][0]
        assert record.case.startswith("qwen3-0.6b, 512 x 1024 x 151936, ")
        assert record.limit.times == pytest.approx(gemms)
        assert record.share == pytest.approx(gemms * record.limit.seconds / record.ours.seconds)
    memory_bound = by_operation["from_logits forward"][0]
    assert memory_bound.limit.times == 1
    assert memory_bound.share == pytest.approx(memory_bound.limit.seconds / memory_bound.ours.seconds)


def test_gpu_records_hold_the_numbers_of_the_file(head_run):
    written = json.loads(head_run.read_text())["records"]
    by_operation = read(head_run).operations()
    for source in written:
        (record,) = by_operation[source["operation"]]
        assert record.case == "48 x 32 x 3001"
        for variant in record.variants:
            timing = source["timings"][variant.name]
            assert variant.seconds == pytest.approx(timing["median_ms"] / 1e3)
            assert variant.spread_s == pytest.approx((timing["p20_ms"] / 1e3, timing["p80_ms"] / 1e3))
            assert variant.entropy_error == source["entropy_relative_error"].get(variant.name)
        assert record.limit.seconds == pytest.approx(source["timings"]["limit: bare GEMM"]["median_ms"] / 1e3)
        assert record.limit.times == pytest.approx(source["flops"] / (2 * 48 * 32 * 3001))


@pytest.mark.parametrize(("weight", "gemms"), [("frozen", 2), ("trained", 3)])
def test_one_pass_of_a_gpu_record_is_ours_in_a_record_of_its_own(head_run, weight, gemms):
    written = {record["operation"]: record for record in json.loads(head_run.read_text())["records"]}
    timings = written[f"head forward + backward, {weight} weight"]["timings"]
    (record,) = read(head_run).operations()[f"head loss and gradients in one pass, {weight} weight"]
    assert record.ours.name == "cer_ext, one pass"
    assert record.ours.seconds == pytest.approx(timings["cer_ext, one pass"]["median_ms"] / 1e3)
    peers = {variant.name: variant.seconds for variant in record.peers}
    assert peers["cer_ext, two passes"] == pytest.approx(timings["cer_ext"]["median_ms"] / 1e3)
    assert peers["plain torch"] == pytest.approx(timings["plain torch"]["median_ms"] / 1e3)
    assert record.limit.times == pytest.approx(gemms)


def gpu_result(*records: dict, dry_run: bool) -> dict:
    machine = {"gpu": "name, driver_version, x\nNVIDIA H200, 570.1, 3", "packages": {"torch": "2.13.0"}}
    return {"machine": machine, "dry_run": dry_run, "stages": {"build": {"ok": True}, "logits": {"records": records}}}


def timing(milliseconds: float, peak: int | None = None) -> dict:
    spread = {"p20_ms": 0.9 * milliseconds, "p80_ms": 1.1 * milliseconds}
    return {"median_ms": milliseconds, **spread, "peak_extra_bytes": peak}


def logits_record(**changed) -> dict:
    timings = {"cer_ext": timing(2.0, 2**20), "limit: copy (reads and writes: twice the bytes)": timing(3.0)}
    record = {"operation": "logits forward bfloat16", "shape": [16, 3001], "flops": 0, "bytes": 96032}
    return record | {"timings": timings, "failures": {}, "entropy_relative_error": {"cer_ext": 1e-7}} | changed


def test_a_forward_pass_is_half_a_copy_and_a_rehearsal_says_so(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(gpu_result(logits_record(), dry_run=False)))
    results = read(path)
    assert results.where == "NVIDIA H200, driver 570.1; torch 2.13.0"
    (record,) = results.records
    assert (record.operation, record.case) == ("logits forward", "16 x 3001, bfloat16")
    assert record.share == pytest.approx(0.75)  # 1.5 ms of reading in 2 ms
    assert (record.ours.peak_bytes, record.unit) == (2**20, "B")
    path.write_text(json.dumps(gpu_result(logits_record(), dry_run=True)))
    assert read(path).where.startswith("REHEARSAL, not a measurement")


def test_a_variant_that_failed_keeps_its_reason(tmp_path):
    path = tmp_path / "result.json"
    failures = {"cer_ext": "RuntimeError: no kernel", "quack": "OutOfMemoryError: too much"}
    record = logits_record(timings={"plain torch": timing(4.0)}, failures=failures)
    path.write_text(json.dumps(gpu_result(record, dry_run=False)))
    (found,) = read(path).records
    assert found.share is None
    assert {v.name: (v.seconds, v.failure) for v in found.variants} == {
        "cer_ext": (None, "RuntimeError: no kernel"),
        "plain torch": (0.004, None),
        "quack": (None, "OutOfMemoryError: too much"),
    }
    printed = table.table(read(path))
    assert "| 16 x 3001, bfloat16 | **cer_ext** | failed | RuntimeError: no kernel |" in printed
    assert "| | quack | failed | OutOfMemoryError: too much |" in printed


def test_table_prints_medians_ratios_memory_and_the_head_alone(tmp_path, committed):
    content = json.loads(committed.read_text())
    content["benchmarks"] = [
        {
            "group": "one GRPO step, LoRA (frozen head)",
            "name": "bench_step[lora-float32]",
            "extra_info": {
                "median_s": 0.5,
                "peers_s": {"TRL": 1.25, "limit: the body alone": 0.2},
                "physical": {"flops": 7},
                "step_peak_bytes": {"cer_ext": 3 * 2**20, "TRL": 9 * 2**20},
                "head_ratio": 3.5,
            },
        }
    ]
    path = tmp_path / "step.json"
    path.write_text(json.dumps(content))
    lines = table.table(read(path)).splitlines()
    machine = content["machine_info"]
    assert lines[0].startswith(f"{machine['cpu']}, {machine['threads']} threads; torch {machine['torch']}")
    assert lines[2] == "### one GRPO step, LoRA (frozen head)"
    assert lines[6:] == [
        "| lora-float32 | **cer_ext** | 500 ms |  |",
        "| | TRL | 1.25e+03 ms | ours 2.50x as fast |",
        "| | limit: the body alone | 200 ms | ours 2.50x the limit |",
        "| | the head alone: step minus body | | ours 3.50x as fast as TRL |",
        "| | memory added at the peak | | cer_ext 3 MiB, TRL 9 MiB |",
    ]
    assert read(path).records[0].share is None  # the body is other work


def test_table_of_a_real_run_has_a_row_for_every_variant(small_run):
    printed = table.table(read(small_run))
    for source in json.loads(small_run.read_text())["benchmarks"]:
        info = source["extra_info"]
        for name, seconds in info["peers_s"].items():
            ratio = info["median_s"] / seconds if name.startswith("limit") else seconds / info["median_s"]
            assert re.search(rf"\| {re.escape(name)} \| {seconds * 1e3:.3g} ms \| ours {ratio:.2f}x ", printed)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("{", "expected JSON"),
        ("[]", "got list"),
        ('{"memory": [], "time": 1}', "got an object with memory, time"),
        ('{"machine_info": MACHINE, "benchmarks": []}', "holds no timed record"),
        ('{"records": [], "left_out": [], "peers_not_here": {}}', "holds no timed record"),
        (
            '{"machine_info": MACHINE, "benchmarks": [{"name": "x", "group": "g", "extra_info": {}}]}',
            "not as bench/ writes it: KeyError",
        ),
    ],
)
def test_a_file_without_records_is_refused_by_name(tmp_path, text, said, capsys):
    path = tmp_path / "file.json"
    path.write_text(text.replace("MACHINE", '{"cpu": "c", "threads": 1}'))
    with pytest.raises(ValueError, match=rf"file\.json: .*{re.escape(said)}"):
        read(path)
    assert str(path) in table.main([str(path)])
    assert capsys.readouterr().out == ""
