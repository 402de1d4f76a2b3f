"""The records files: what is written is read again, and a kill at any byte loses whole batches only."""

import errno
import json
import os

import pytest

from trainer.records.record_files import RecordWriter, read_records, record_path, rounded


def make_record(identity="p1", sample=0, **changes):
    record = {
        "id": identity,
        "benchmark": "gsm8k",
        "method": "thinking",
        "sample": sample,
        "question": "1 + 1? ½",
        "ground_truth": "2",
        "prompt": "<user> 1 + 1? ½",
        "response": "two\n\u2028is 2",
        "extracted_answer": None,
        "is_correct": False,
        "response_length": 2,
        "finish_reason": "stop",
        "tokens": ["two\n\u2028is 2", "<end>"],
        "token_ids": [4, 1],
        "token_entropies": [0.25, 1e-8],
        "teca": [0.25, 0.125],
    }
    return {**record, **changes}


def write(directory, *batches):
    with RecordWriter(directory, "gsm8k", "thinking") as writer:
        for batch in batches:
            writer.append(batch)
        return dict(writer.written)


def test_records_are_read_as_they_were_written(tmp_path):
    records = [make_record(f"p{i}", sample) for i in range(3) for sample in range(2)]
    write(tmp_path, records[:2], records[2:])
    assert list(read_records(tmp_path)) == records


def test_a_file_cut_at_any_byte_keeps_its_whole_records_and_is_completed_by_the_next_writer(tmp_path):
    records = [make_record(f"p{i}") for i in range(3)]
    write(tmp_path, records)
    path = record_path(tmp_path, "gsm8k", "thinking")
    whole = path.read_bytes()
    ends = [offset + 1 for offset, byte in enumerate(whole) if byte == ord("\n")]
    near = {end + shift for end in (0, *ends) for shift in (-2, -1, 0, 1, 2)}
    for cut in sorted(near & set(range(len(whole) + 1)) | set(range(0, len(whole), 29))):
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert list(read_records(tmp_path)) == records[:kept], f"cut at byte {cut}"
        written = write(tmp_path, records[kept:])
        assert len(written) == 3
        assert path.read_bytes() == whole, f"cut at byte {cut}"


def test_a_line_broken_in_the_middle_is_damage_not_a_torn_end(tmp_path):
    write(tmp_path, [make_record(f"p{i}") for i in range(3)])
    path = record_path(tmp_path, "gsm8k", "thinking")
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1][:20]
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="line 2 is broken"):
        list(read_records(tmp_path))
    with pytest.raises(ValueError, match="line 2 is broken"):
        RecordWriter(tmp_path, "gsm8k", "thinking")


def test_a_record_cannot_be_written_twice(tmp_path):
    write(tmp_path, [make_record()])
    with RecordWriter(tmp_path, "gsm8k", "thinking") as writer, pytest.raises(ValueError, match="twice"):
        writer.append([make_record()])
    assert len(list(read_records(tmp_path))) == 1


def test_a_doubled_record_in_a_file_is_refused(tmp_path):
    write(tmp_path, [make_record()])
    path = record_path(tmp_path, "gsm8k", "thinking")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match=r"id 'p1', sample 0 twice"):
        RecordWriter(tmp_path, "gsm8k", "thinking")


def test_a_full_disk_leaves_whole_records_and_the_next_writer_goes_on(tmp_path, monkeypatch):
    write(tmp_path, [make_record("p1")])
    real = os.write

    def half_then_full(descriptor, data):
        if len(data) < 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patch, RecordWriter(tmp_path, "gsm8k", "thinking") as writer:
        patch.setattr(os, "write", half_then_full)
        with pytest.raises(OSError, match="No space left"):
            writer.append([make_record("p2"), make_record("p3")])
    left = [record["id"] for record in read_records(tmp_path)]
    assert left in (["p1"], ["p1", "p2"])
    write(tmp_path, [make_record(name) for name in ("p2", "p3") if name not in left])
    assert [record["id"] for record in read_records(tmp_path)] == ["p1", "p2", "p3"]


def test_two_writers_of_one_file_exclude_each_other(tmp_path):
    with (
        RecordWriter(tmp_path, "gsm8k", "thinking"),
        pytest.raises(BlockingIOError, match="being written by another process"),
    ):
        RecordWriter(tmp_path, "gsm8k", "thinking")
    RecordWriter(tmp_path, "gsm8k", "thinking").close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_entropies": [float("nan"), 0.0]}, "not JSON compliant"),
        ({"teca": [0.1]}, "1 teca for response_length 2"),
        ({"finish_reason": "eos"}, "finish_reason is 'eos'"),
        ({"sample": True}, "sample is a bool"),
        ({"is_correct": 1}, "is_correct is a int"),
        ({"benchmark": "aime24"}, "does not belong"),
    ],
)
def test_a_wrong_record_is_not_written(tmp_path, changes, message):
    with RecordWriter(tmp_path, "gsm8k", "thinking") as writer, pytest.raises(ValueError, match=message):
        writer.append([make_record(), make_record("p2", **changes)])
    assert record_path(tmp_path, "gsm8k", "thinking").read_bytes() == b""


def test_lines_are_json_for_any_reader(tmp_path):
    write(tmp_path, [make_record()])
    (line,) = record_path(tmp_path, "gsm8k", "thinking").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(line, parse_constant=pytest.fail)["question"] == "1 + 1? ½"


def test_floats_keep_six_digits_at_any_magnitude():
    assert rounded([1.23456789, 1.23456789e-9, 0.0, 11.9312345]) == [1.23457, 1.23457e-9, 0.0, 11.9312]


def test_names_that_would_be_ambiguous_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="benchmark name 'a-b'"):
        record_path(tmp_path, "a-b", "thinking")


def test_missing_records_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        list(read_records(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match="no records-"):
        list(read_records(tmp_path))
