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


def test_all_that_a_run_measured_reaches_the_records(head_run):
    written = json.loads(head_run.read_text())["benchmarks"]
    results = read(head_run)
    assert results.where.startswith("REHEARSAL, not a measurement: ")
    assert len(results.records) == len(written) == 6  # two forwards; two passes and one, each frozen and trained
    for record, source in zip(results.records, written, strict=True):
        info = source["extra_info"]
        assert record.case == "smoke, 33 x 24 x 3001, bfloat16"
        for variant in record.variants:
            assert variant.seconds == (info["median_s"] if variant is record.ours else info["peers_s"][variant.name])
            assert variant.spread_s == tuple(info["spread_s"][variant.name])
            assert variant.entropy_error == info["entropy_error"].get(variant.name)
    forward = results.operations()["from_hidden forward"][0]
    errors = {variant.name: variant.entropy_error for variant in forward.variants}
    assert errors["cer_ext"] < 1e-5 < errors["plain torch"]  # which rounds its logits to bfloat16


def result_of_a_proof(path, *records: dict) -> None:
    machine = {"cpu": "c", "threads": 1, "torch": "2.13.0", "gpu": {"name": "NVIDIA H200", "driver_version": "570.1"}}
    stages = {"build": {"ok": True}, "logits": {"ok": True, "machine_info": machine, "benchmarks": records}}
    path.write_text(json.dumps({"machine": {}, "dry_run": False, "stages": stages}))


def logits_record(**changed) -> dict:
    limit = "limit: copy (reads and writes: twice the bytes)"
    info = {
        "median_s": 0.002,
        "peers_s": {limit: 0.003},
        "physical": {"bytes": 96032},
        "peak_bytes": {"cer_ext": 2**20},
    }
    name = "bench_forward[smoke-N16-D0-V3001-bfloat16]"
    return {"group": "from_logits forward", "name": name, "extra_info": info | changed}


def test_a_proofs_result_is_read_and_a_forward_pass_is_half_a_copy(tmp_path):
    path = tmp_path / "result.json"
    result_of_a_proof(path, logits_record())
    results = read(path)
    assert results.where == "NVIDIA H200, driver 570.1; torch 2.13.0"
    (record,) = results.records
    assert (record.operation, record.case) == ("from_logits forward", "smoke, 16 x 3001, bfloat16")
    assert record.share == pytest.approx(0.75)  # 1.5 ms of reading in 2 ms
    assert (record.ours.peak_bytes, record.unit) == (2**20, "B")


def test_a_variant_that_failed_keeps_its_reason(tmp_path):
    path = tmp_path / "result.json"
    failures = {"quack": "OutOfMemoryError: too much"}
    result_of_a_proof(path, logits_record(peers_s={"plain torch": 0.004}, failures=failures))
    (found,) = read(path).records
    assert found.share is None
    assert {v.name: (v.seconds, v.failure) for v in found.variants} == {
        "cer_ext": (0.002, None),
        "plain torch": (0.004, None),
        "quack": (None, "OutOfMemoryError: too much"),
    }
    assert "| | quack | failed | OutOfMemoryError: too much |" in table.table(read(path))


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
        ('{"stages": {"head": {"ok": false}}}', "holds no timed record"),
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
