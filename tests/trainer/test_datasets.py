"""Problems from local files of every kind: values, splits, order, and what is said when the data is not right."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from trainer.catalogue.data_sets import DATA_SETS
from trainer.datasets import BOXED_INSTRUCTION, DataError, filter_by_length, load_problems
from trainer.datasets.answers import ground_truth
from trainer.grading import grade
from trainer.prompts.prompt import Example, Prompt

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

GSM8K_LIKE = [
    {"question": "Ann has 3 pens and buys 4. How many?", "answer": "3+4=<<3+4=7>>7\n#### 7"},
    {"question": "A house costs $900 and 200 more. How much?", "answer": "900+200=1,100\n#### 1,100"},
    {"question": "What is 5 less than 3?", "answer": "3-5=-2\n#### -2"},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_jsonl(path: Path, records: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write(path: Path, records: list) -> Path:
    if path.suffix == ".jsonl":
        return write_jsonl(path, records)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        with path.open("wb") as file:
            parquet.write_table(pyarrow.Table.from_pylist(records), file)
    else:
        path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_file_becomes_problems(tmp_path, suffix):
    problems = load_problems(str(write(tmp_path / f"sums{suffix}", GSM8K_LIKE)))
    assert set(problems.column_names) == {"prompt", "ground_truth", "question", "id"}
    assert list(problems["ground_truth"]) == ["7", "1,100", "-2"]
    assert list(problems["question"]) == [record["question"] for record in GSM8K_LIKE]
    assert list(problems["id"]) == ["sums-train-0", "sums-train-1", "sums-train-2"]
    content = GSM8K_LIKE[0]["question"] + "\n\n" + BOXED_INSTRUCTION
    assert problems[0]["prompt"] == [{"role": "user", "content": content}]


def test_instruction_and_system_prompt(tmp_path):
    path = str(write(tmp_path / "a.jsonl", GSM8K_LIKE))
    plain = load_problems(path, instruction=None)
    assert plain[0]["prompt"] == [{"role": "user", "content": GSM8K_LIKE[0]["question"]}]
    other = load_problems(path, instruction="Be brief.", system_prompt="You count.")
    assert other[0]["prompt"] == [
        {"role": "system", "content": "You count."},
        {"role": "user", "content": GSM8K_LIKE[0]["question"] + "\n\nBe brief."},
    ]


def test_named_columns(tmp_path):
    path = str(write(tmp_path / "a.parquet", [{"text": "1+1?", "value": 2, "answer": "no"}]))
    problems = load_problems(path, question_column="text", answer_column="value")
    assert list(problems["ground_truth"]) == ["2"]
    assert list(problems["question"]) == ["1+1?"]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 25}, "2024-I-1"),  # Maxwell-Jia/AIME_2024
        ({"problem": "p", "answer": "25", "id": "0"}, "0"),  # math-ai/aime25
        ({"problem": "p", "solution": "s", "answer": "25", "unique_id": "test/a/1.json"}, "test/a/1.json"),  # MATH-500
    ],
)
def test_the_columns_of_the_known_hub_data_sets_are_found(tmp_path, record, name):
    problems = load_problems(str(write(tmp_path / "a.jsonl", [record])))
    assert (problems[0]["question"], problems[0]["ground_truth"], problems[0]["id"]) == ("p", "25", name)


def test_known_sources_on_the_hub_are_asked_for_by_their_id(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path, config, split))
        return datasets.Dataset.from_list([{"Problem": "p", "Answer": 25}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in DATA_SETS:
        assert list(load_problems(name)["ground_truth"]) == ["25"]
    load_problems("gsm8k", split="test[:5]")
    load_problems("someone/some-data", config="c", split="dev")
    assert asked == [
        ("openai/gsm8k", "main", "train"),
        ("HuggingFaceH4/MATH-500", None, "test"),
        ("Maxwell-Jia/AIME_2024", None, "train"),
        ("math-ai/aime25", None, "test"),
        ("openai/gsm8k", "main", "test[:5]"),
        ("someone/some-data", "c", "dev"),
    ]


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"openai/gsm8k: cannot load split 'train' from the hub: .*no route.*data_dir"):
        load_problems("gsm8k")


def test_splits_of_a_directory_slices_and_the_local_layout(tmp_path):
    write(tmp_path / "gsm8k" / "train.jsonl", GSM8K_LIKE)
    write(tmp_path / "gsm8k" / "test.jsonl", GSM8K_LIKE[:1])
    assert len(load_problems("gsm8k", data_dir=tmp_path)) == 3
    assert len(load_problems("gsm8k", data_dir=tmp_path, split="test")) == 1
    assert len(load_problems(str(tmp_path / "gsm8k"), split="train[1:]")) == 2
    assert list(load_problems(str(tmp_path / "gsm8k"), split="train[1:2]")["ground_truth"]) == ["1,100"]
    write(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", GSM8K_LIKE[:2])
    write(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", GSM8K_LIKE[2:])
    assert list(load_problems(str(tmp_path / "hub"))["ground_truth"]) == ["7", "1,100", "-2"]


def test_shuffle_and_subset_depend_on_the_seed_alone(tmp_path):
    records = [{"question": f"{i}?", "answer": str(i)} for i in range(50)]
    path = str(write(tmp_path / "a.jsonl", records))
    first = load_problems(path, shuffle_seed=1, max_samples=10)
    assert first.to_list() == load_problems(path, shuffle_seed=1, max_samples=10).to_list()
    assert list(first["id"]) != list(load_problems(path, shuffle_seed=2, max_samples=10)["id"])
    assert len(set(first["id"])) == 10
    assert all(row["id"] == f"a-train-{row['ground_truth']}" for row in first)
    assert list(load_problems(path, max_samples=3)["ground_truth"]) == ["0", "1", "2"]
    assert len(load_problems(path, max_samples=1000)) == 50


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"a": 1, "b": 2}], "no column looks like the question: the columns are a, b; .*question_column"),
        ([], "split 'train' is empty"),
        ([{"question": "q", "answer": "1"}, {"question": None, "answer": "1"}], "record 2, .*'question'.*None"),
        ([{"question": " ", "answer": "1"}], "record 1, column 'question': expected a question as text"),
        ([{"question": "q", "answer": None}], "record 1, column 'answer': .*None"),
        ([{"question": "q", "answer": []}], "record 1, column 'answer': expected answers of which one is right"),
        ([{"question": "q", "answer": [[1]]}], "record 1, column 'answer': expected answers of which one is right"),
        ([{"question": "q", "answer": [1, None]}], "record 1, column 'answer': expected an answer as text"),
        ([{"question": "q", "answer": {"value": 1}}], "record 1, column 'answer': expected an answer as text"),
        ([{"question": "q", "answer": float("nan")}], "record 1, column 'answer': nan is no answer"),
        ([{"question": "q", "answer": float("-inf")}], "record 1, column 'answer': -inf is no answer"),
        ([{"question": "q", "answer": "NaN"}], "record 1, column 'answer': 'NaN' is no answer"),
        (
            [{"question": "q\ud83d", "answer": "1"}],
            r"column 'question': character 2 is half of a surrogate pair \(.ud83d",
        ),
        ([{"question": "q", "answer": "\udc00"}], "column 'answer': character 1 is half of a surrogate pair"),
        ([{"question": "q", "answer": "1", "id": "\udc00"}], "column 'id': character 1 is half of a surrogate pair"),
        ([{"question": 5, "answer": "1"}], "column 'question': expected a question as text, got 5"),
        ([{"question": 0.5, "answer": "1"}], "column 'question': expected a question as text, got '0.5'"),
        ([{"question": "q", "answer": "a\nb"}], "record 1, column 'answer': no answer in 'a"),
        ([{"question": "q", "answer": "a\n#### "}], "record 1, column 'answer': no answer in"),
        ([{"question": "q", "answer": "\\boxed{5"}], "record 1, column 'answer': no answer in"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_is_wrong_with_a_record_is_named(tmp_path, records, said, suffix):
    with pytest.raises(DataError, match=said):
        load_problems(str(write(tmp_path / f"bad{suffix}", records)))


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("sums.jsonl", {"answer_column": "x"}, "no column 'x' for the answer: the columns are question, answer"),
        ("sums.jsonl", {"max_samples": 0}, "max_samples is 0"),
        ("sums.jsonl", {"split": "train[:0]"}, "split 'train\\[:0\\]' is empty"),
        ("sums.jsonl", {"split": "tr ain"}, "the split is 'tr ain'"),
        ("none.jsonl", {}, "there is no file none.jsonl"),
        ("notes.txt", {}, "expected a file that ends in .jsonl, .json, .parquet"),
        ("two", {"split": "test"}, "there is no split 'test': there are dev, train"),
        ("bare", {}, "no file in it ends in .jsonl, .json, .parquet"),
        ("gsm9k", {}, "is no file, no directory, no hub id .* none of gsm8k, math500"),
        ("gsm8k", {"data_dir": "two"}, "there is no directory two/gsm8k"),
    ],
)
def test_what_is_wrong_with_a_source_is_named(tmp_path, monkeypatch, source, options, said):
    monkeypatch.chdir(tmp_path)
    for name in ("sums.jsonl", "two/train.jsonl", "two/dev.jsonl"):
        write(Path(name), GSM8K_LIKE)
    Path("notes.txt").write_text("hello")
    Path("bare").mkdir()
    with pytest.raises(DataError, match=said):
        load_problems(source, **options)


def test_a_lone_file_is_the_split_it_is_asked_for_as(tmp_path):
    path = str(write(tmp_path / "sums.jsonl", GSM8K_LIKE))
    assert len(load_problems(path, split="test")) == 3
    assert len(load_problems(path, split="test[:2]")) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"question": "q", "answer": ', "line 3: this is no JSON"), ("[1, 2]", "line 3: expected a JSON object")],
)
def test_an_unreadable_record_is_named_by_its_line(tmp_path, line, said):
    path = write_jsonl(tmp_path / "a.jsonl", GSM8K_LIKE[:2])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=said):
        load_problems(str(path))


def test_a_broken_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(DataError, match=r"a\.parquet: this is no parquet file that can be read"):
        load_problems(str(path))


def test_ground_truth_alone():
    assert ground_truth("thus\n#### 1,200", "") == "1,200"
    assert ground_truth("so \\boxed{\\frac{1}{2}}", "") == "\\frac{1}{2}"
    assert ground_truth(73, "") == "73"
    assert ground_truth(0.5, "") == "0.5"
    assert ground_truth(" p - q ", "") == "p - q"
    with pytest.raises(DataError, match="here: expected an answer"):
        ground_truth(True, "here")


@pytest.mark.parametrize(
    ("solution", "truth"),
    [
        (r"Twice: \framebox{8}", "8"),
        (r"Twice:\nso \framebox[2cm]{8}.", "8"),
        (r"Twice: \fbox{8}", "8"),
        ("Twice.\n<answer>8</answer>", "8"),
        ("<answer> 1 < 8 </answer>", "1 < 8"),
        ("We add.\nThe answer is 8.", "8"),
        ("#### Solution\nWe add: \\boxed{8}", "8"),
        ("x < 8", "x < 8"),
        ("The answer is 8", "The answer is 8"),
    ],
)
def test_the_answer_of_a_solution_is_found_however_it_is_marked(solution, truth):
    assert ground_truth(solution, "") == truth
    assert grade(rf"\boxed{{{'8' if truth[-1] == '8' and len(truth) == 1 else truth}}}", solution)
    assert not grade(r"\boxed{9}", solution)


@pytest.mark.parametrize("solution", [r"so \framebox{}", r"cut off: \boxed{8", "We add.\nThen we are done.", "8 ####"])
def test_a_solution_without_an_answer_is_refused(solution):
    with pytest.raises(DataError, match="here: no answer in"):
        ground_truth(solution, "here")


def test_a_path_is_a_path_whatever_signs_are_in_it(tmp_path):
    others = [{"question": "another file", "answer": "0"}]
    for name, decoy in (
        ("a[12].jsonl", "a1.jsonl"),
        ("b*.json", "bc.json"),
        ("c::d.parquet", "c.parquet"),
        ("e?.jsonl", "ef.jsonl"),
    ):
        write(tmp_path / decoy, others)
        path = write(tmp_path / name, GSM8K_LIKE)
        assert list(load_problems(str(path))["ground_truth"]) == ["7", "1,100", "-2"], name
    write(tmp_path / "d[1]" / "gsm8k" / "train.jsonl", GSM8K_LIKE)
    write(tmp_path / "d1" / "gsm8k" / "train.jsonl", others)
    assert len(load_problems(str(tmp_path / "d[1]" / "gsm8k"))) == 3
    assert len(load_problems("gsm8k", data_dir=tmp_path / "d[1]")) == 3


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data" / "gsm8k" / "train.jsonl", GSM8K_LIKE)
    assert len(load_problems("gsm8k", data_dir="~/data")) == 3
    assert len(load_problems("~/data/gsm8k/train.jsonl")) == 3


@pytest.mark.parametrize(
    ("written", "truth"),
    [
        ("12345678901234567890123", "12345678901234567890123"),
        ("-98765432109876543210", "-98765432109876543210"),
        ("0.10", "0.10"),
        ("1.000000000000000000001", "1.000000000000000000001"),
        ("1e400", "1e400"),
        ("7", "7"),
        ('"007"', "007"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_number_keeps_its_digits(tmp_path, written, truth, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text(f'{{"question": "q", "answer": {written}, "weight": 0.5}}\n{{"question": "r", "answer": "text"}}\n')
    problems = load_problems(str(path))
    assert list(problems["ground_truth"]) == [truth, "text"]
    if "e" not in truth:
        assert grade(f"\\boxed{{{truth}}}", problems[0]["ground_truth"])
        assert not grade(f"\\boxed{{{truth}1}}", problems[0]["ground_truth"])


def test_nan_in_a_parquet_file_is_no_answer(tmp_path):
    path = str(
        write(tmp_path / "a.parquet", [{"question": "q", "answer": 1.5}, {"question": "r", "answer": float("nan")}])
    )
    with pytest.raises(DataError, match="record 2, column 'answer': nan is no answer"):
        load_problems(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_of_a_list_of_answers_any_one_is_right(tmp_path, suffix):
    records = [{"question": "q", "answer": ["7", "seven dwarfs"]}, {"question": "r", "answer": ["\\frac{1}{2}"]}]
    several, single = load_problems(str(write(tmp_path / f"a{suffix}", records)))["ground_truth"]
    assert single == "\\frac{1}{2}"
    assert grade("\\boxed{7}", several)
    assert grade("\\boxed{\\text{seven dwarfs}}", several)
    for wrong in ("8", "dwarfs", "7, 8", '["7", "8"]', "[7, 8]"):
        assert not grade(f"\\boxed{{{wrong}}}", several), wrong


def test_a_list_of_answers_is_graded_as_a_list_too():
    assert grade("\\boxed{7}", ["6", 7])
    assert not grade("\\boxed{8}", ["6", 7])
    assert not grade("\\boxed{7}", [])
    assert grade("\\boxed{[7,8]}", "[7, 8]")  # an interval is none


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_file_that_is_not_utf8_is_named_with_line_and_byte(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes('{"question": "q", "answer": "1"}\n{"question": "caf\xe9", "answer": "1"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=rf"a{suffix}, line 2: byte 18 \(0xe9\) is not UTF-8.*iconv -f ISO-8859-1"):
        load_problems(str(path))


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_compressed_file_and_one_in_utf16_are_called_what_they_are(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(b'{"question": "q", "answer": "1"}'))
    with pytest.raises(DataError, match=r"line 1: this file is compressed: unpack it first \(gunzip\)"):
        load_problems(str(path))
    path.write_text('{"question": "q", "answer": "1"}', encoding="utf-16")
    with pytest.raises(DataError, match=r"is not UTF-8\. The file is in UTF-16, convert it: iconv -f UTF-16 -t UTF-8"):
        load_problems(str(path))


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path):
    for suffix in (".json", ".jsonl"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "q", "answer": "1"}')
        assert list(load_problems(str(path))["ground_truth"]) == ["1"]


def test_a_json_file_may_hold_columns_or_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"question": ["q", "r"], "answer": [1, "x"]}))
    assert list(load_problems(str(path))["ground_truth"]) == ["1", "x"]
    write_jsonl(path, GSM8K_LIKE)
    assert list(load_problems(str(path))["ground_truth"]) == ["7", "1,100", "-2"]
    path.write_text('[{"question": "q",\n "answer": }]')
    with pytest.raises(DataError, match=r"a\.json, line 2: this is no JSON"):
        load_problems(str(path))
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"a\.json: this is no JSON: nested too deeply"):
        load_problems(str(path))


@pytest.mark.parametrize(
    ("split", "truths"), [("train[-1:]", ["-2"]), ("train[:34%]", ["7"]), ("train[:1]+train[2:]", ["7", "-2"])]
)
def test_slices_are_those_of_the_hub(tmp_path, split, truths):
    path = str(write(tmp_path / "train.jsonl", GSM8K_LIKE))
    if "+" in split:
        with pytest.raises(DataError, match="expected a name, or a slice"):
            load_problems(path, split=split)
    else:
        assert list(load_problems(path, split=split)["ground_truth"]) == truths


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "2+2? Answer after ####."}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 0, "answer": "2+2=4\n#### 4", "question": "2+2?"},
}
TRL = {
    "prompt": [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ],
    "solution": "so \\boxed{4}",
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_questions_in_the_form_of_verl_and_trl_are_asked_as_they_are(tmp_path, suffix):
    problem = load_problems(str(write(tmp_path / f"verl{suffix}", [VERL])))[0]
    assert problem["prompt"] == VERL["prompt"]
    assert (problem["question"], problem["ground_truth"]) == ("2+2? Answer after ####.", "4")
    problem = load_problems(str(write(tmp_path / f"trl{suffix}", [TRL])))[0]
    assert problem["prompt"] == TRL["prompt"]
    assert (problem["question"], problem["ground_truth"]) == ("2+2?", "4")


def test_a_content_may_be_parts_of_text(tmp_path):
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    path = str(write(tmp_path / "a.jsonl", [{"prompt": [{"role": "user", "content": parts}], "answer": 4}]))
    assert load_problems(path)[0]["prompt"] == [{"role": "user", "content": "2+2?"}]


def test_a_prompt_that_is_asked_for_is_put_around_messages(tmp_path):
    around = Prompt("You multiply.", "Box it.", (Example("3*3?", "9"),))
    problem = load_problems(str(write(tmp_path / "a.jsonl", [TRL])), prompt_of_messages=around)[0]
    assert problem["prompt"] == [
        {"role": "system", "content": "You multiply."},
        {"role": "user", "content": "3*3?\n\nBox it."},
        {"role": "assistant", "content": "9"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?\n\nBox it."},
    ]
    assert problem["question"] == "2+2?"


def test_a_column_inside_a_column_can_be_named(tmp_path):
    path = str(write(tmp_path / "a.jsonl", [VERL]))
    problem = load_problems(path, question_column="extra_info.question", answer_column="extra_info.answer")[0]
    assert (problem["question"], problem["ground_truth"]) == ("2+2?", "4")
    with pytest.raises(DataError, match=r"no column 'extra_info\.solution' for the answer"):
        load_problems(path, answer_column="extra_info.solution")


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "4"}], "messages that end in the user's"),
        ([{"role": "user", "content": ""}], "turn 1: expected a content as text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "turn 1: expected text alone"),
        ([{"role": "tool", "content": "x"}], "turn 1: expected a role"),
        (["q"], "turn 1: expected a role"),
    ],
)
def test_messages_that_cannot_be_asked_are_named(tmp_path, messages, said):
    path = str(write(tmp_path / "a.jsonl", [{"prompt": messages, "answer": "4"}]))
    with pytest.raises(DataError, match=f"record 1, column 'prompt'.*{said}"):
        load_problems(path)


def test_bad_rows_are_left_out_and_counted_where_that_is_asked_for(tmp_path):
    records = [
        {"question": "a", "answer": "1"},
        {"question": "b", "answer": None},
        {"question": "", "answer": "3"},
        {"question": "d", "answer": float("nan")},
        {"question": "e", "answer": "5"},
        {"question": "f", "answer": "6"},
    ]
    path = str(write(tmp_path / "a.jsonl", records))
    bad: list[DataError] = []
    problems = load_problems(path, bad_rows=bad)
    assert list(problems["ground_truth"]) == ["1", "5", "6"]
    assert list(problems["id"]) == ["a-train-0", "a-train-4", "a-train-5"]
    assert [str(error).split(", column")[0][-8:] for error in bad] == ["record 2", "record 3", "record 4"]
    assert list(load_problems(path, bad_rows=[], max_samples=2)["ground_truth"]) == ["1", "5"]
    with pytest.raises(DataError, match="record 2"):
        load_problems(path)
    nothing = str(write(tmp_path / "b.jsonl", records[1:3]))
    with pytest.raises(DataError, match=r"no row with a question and an answer; .*record 1"):
        load_problems(nothing, bad_rows=[])


def test_ids_of_the_data_are_kept_and_rows_without_one_are_named_as_asked(tmp_path):
    records = [
        {"question": "q", "answer": "1", "id": identity} for identity in ("a-train-0", 12345678901234567890123, None)
    ]
    path = str(write(tmp_path / "a.jsonl", records))
    assert list(load_problems(path)["id"]) == ["a-train-0", "12345678901234567890123", "a-train-2"]
    assert list(load_problems(path, name_row=str)["id"]) == ["a-train-0", "12345678901234567890123", "2"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per character, and a chat template with Qwen3's switch for thinking."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    characters = {chr(code): code - 31 for code in range(32, 127)} | {"\n": 0}
    core = Tokenizer(models.WordLevel(characters, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
    )
    return made


def test_length_filter_counts_tokens_as_the_template_renders_them(tmp_path, tokenizer):
    records = [{"question": "q" * n, "answer": str(n)} for n in (5, 10, 30)]
    problems = load_problems(str(write(tmp_path / "a.jsonl", records)), instruction=None)
    kept, report = filter_by_length(problems, tokenizer, 11)
    assert list(kept["ground_truth"]) == ["5", "10"]
    assert (report.kept, report.dropped, report.longest, report.longest_kept) == (2, 1, 31, 11)
    assert str(report).startswith("1 of 3 problems left out: prompts longer than 11 tokens")
    kept, report = filter_by_length(problems, tokenizer, 25, chat_template_kwargs={"enable_thinking": False})
    assert list(kept["ground_truth"]) == ["5"]
    assert report.longest_kept == 6 + len("<think></think>")
    assert report.longest == 31 + len("<think></think>")
    with pytest.raises(DataError, match="every prompt has more than 3 tokens; the shortest has 6"):
        filter_by_length(problems, tokenizer, 3)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        filter_by_length(problems, tokenizer, 100)


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("gsm8k", "train", 7473),
        ("gsm8k", "test", 660),
        ("math500", None, 250),
        ("aime24", None, 30),
        ("aime25", None, 30),
    ],
)
def test_real_data_is_read_whole_and_its_answers_are_gradable(name, split, count):
    if not (REAL_DATA / name).exists():
        pytest.skip(f"the real data set is not here: {REAL_DATA / name}")
    problems = load_problems(name, data_dir=REAL_DATA, split=split)
    assert len(problems) == count
    assert len(set(problems["id"])) == count
    for truth in problems["ground_truth"]:
        assert grade(f"\\boxed{{{truth}}}", truth)
