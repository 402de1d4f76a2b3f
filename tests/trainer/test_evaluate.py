"""The command: benchmarks from local files, published prompts, a kill at any time, refused changes, early errors."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import Qwen3ForCausalLM

from trainer import evaluate
from trainer.catalogue.methods import METHODS, methods
from trainer.evaluation.answers import token_texts
from trainer.evaluation.benchmarks import load_benchmark
from trainer.evaluation.engine_transformers import TransformersEngine
from trainer.evaluation.prompts import encode_prompt, render
from trainer.prompts.prompt import Prompt
from trainer.records.record_files import check_record, read_records
from trainer.records.settings import read_settings
from trainer.storage.fingerprint import model_fingerprint
from trainer.tiny.model import build_model
from trainer.tiny.problems import draw_problems
from trainer.tiny.tokenizer import byte_tokenizer, word_tokenizer

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = ("gsm8k", "math500", "aime24", "aime25")
# Two problems of each benchmark, in its own columns.
SAMPLES = {
    "gsm8k": [
        {"question": "Tom has 3 pens and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
        {"question": "A robe costs $1,200. Two of them?", "answer": "It is 2 * 1200.\n#### 2,400"},
    ],
    "math500": [
        {
            "problem": "Find $x$ with $2x=1$.",
            "solution": "x",
            "answer": "\\frac{1}{2}",
            "unique_id": "test/algebra/1.json",
        },
        {"problem": "What is $\\sqrt{16}$?", "solution": "y", "answer": "4", "unique_id": "test/algebra/2.json"},
    ],
    "aime24": [
        {"id": 60, "problem": "Find $m+n$.", "solution": "z", "answer": "204"},
        {"id": 61, "problem": "Find $p$.", "solution": "z", "answer": "025"},
    ],
    "aime25": [
        {"id": "I-1", "problem": "Find all bases.", "answer": "70"},
        {"id": "I-2", "problem": "Find the area – in cm².", "answer": "588"},
    ],
}


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory) -> Path:
    """The embedded Qwen3, untrained, with one token per byte: it reads any benchmark and answers noise."""
    path = tmp_path_factory.mktemp("byte_model")
    tokenizer = byte_tokenizer()
    model = build_model(tokenizer, seed=0, max_positions=8192)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, str]:
    """benchmark -> local file."""
    directory = tmp_path_factory.mktemp("benchmarks")
    paths = {}
    for name, rows in SAMPLES.items():
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths[name] = str(path)
    return paths


def arguments(model, output, data, *options):
    benchmarks = ",".join(data)
    files = [part for name, path in data.items() for part in ("--data", f"{name}={path}")]
    return ["--model", str(model), "--output", str(output), "--benchmarks", benchmarks, *files, *map(str, options)]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(Path(directory).glob("records-*.jsonl"))}


def keys(directory):
    return [(r["benchmark"], r["method"], r["id"], r["sample"]) for r in read_records(directory)]


SHORT = ("--max_new_tokens", 12, "--batch_size", 3)


@pytest.fixture(scope="session")
def switch_model(byte_model, tmp_path_factory) -> Path:
    """The same, with a chat template that knows enable_thinking as Qwen3's does."""
    path = tmp_path_factory.mktemp("switch") / "model"
    shutil.copytree(byte_model, path)
    template = path / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if not enable_thinking %}<think></think>{% endif %}")
    return path


def test_four_benchmarks_by_four_methods_give_every_record_once(switch_model, files, tmp_path):
    byte_model = switch_model
    options = ("--methods", "thinking,no_thinking,cod,ccot", "--samples", 2, *SHORT)
    assert evaluate.main(arguments(byte_model, tmp_path, files, *options)) == 0
    found = keys(tmp_path)
    assert len(found) == len(set(found)) == 4 * 4 * 2 * 2
    truths = {}
    for record in read_records(tmp_path):
        check_record(record)
        truths.setdefault(record["benchmark"], []).append(record["ground_truth"])
        assert record["question"] in record["prompt"]
        assert record["finish_reason"] == ("length" if record["response_length"] == 12 else "stop") or (
            record["response_length"] == 12 and record["tokens"][-1] == "<|end|>"
        )
        assert all(0 <= entropy <= 5.6 for entropy in record["token_entropies"])  # log 262
        mean = sum(record["token_entropies"]) / record["response_length"]
        assert record["teca"][-1] == pytest.approx(mean, rel=1e-5)
    assert set(truths["gsm8k"]) == {"7", "2,400"}
    settings = read_settings(tmp_path)
    assert (settings["temperature"], settings["top_p"], settings["samples"]) == (0.8, 0.95, 2)
    assert settings["provenance"]["versions"]["torch"] == importlib.metadata.version("torch")
    before = contents(tmp_path)
    assert evaluate.main(arguments(byte_model, tmp_path, files, *options)) == 0
    assert contents(tmp_path) == before


def test_two_names_for_one_prompt_are_one_method(byte_model, files, tmp_path, caplog):
    """Without a switch in the template, thinking and no_thinking put the same prompt."""
    data = {"gsm8k": files["gsm8k"]}
    options = ("--methods", "thinking,no_thinking", *SHORT)
    assert evaluate.main(arguments(byte_model, tmp_path, data, *options)) == 0
    assert {record["method"] for record in read_records(tmp_path)} == {"thinking"}
    assert "no_thinking asks as thinking does, and is left out beside it" in caplog.text


def test_killed_runs_are_completed_to_the_responses_of_an_uninterrupted_one(byte_model, files, tmp_path):
    """kill -9: what had ended is there, nothing is doubled, and the rest is drawn as it would have been."""
    data = {name: files[name] for name in ("gsm8k", "aime25")}
    options = ("--methods", "thinking,cod", "--samples", 6, "--max_new_tokens", 100, "--batch_size", 4)
    whole = tmp_path / "whole"
    assert evaluate.main(arguments(byte_model, whole, data, *options)) == 0
    assert len(keys(whole)) == 48

    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "trainer.evaluate", *arguments(byte_model, cut, data, *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(path.stat().st_size for path in cut.glob("records-*")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert 0 < len(keys(cut)) < 48
    assert evaluate.main(arguments(byte_model, cut, data, *options)) == 0
    assert len(keys(cut)) == 48
    expected = {tuple(r[k] for k in ("benchmark", "method", "id", "sample")): r for r in read_records(whole)}
    for record in read_records(cut):  # neighbours change the rounding, and nothing else
        same = expected.pop(tuple(record[k] for k in ("benchmark", "method", "id", "sample")))
        assert record["token_ids"] == same["token_ids"]
        assert record["token_entropies"] == pytest.approx(same["token_entropies"], rel=1e-4)
    assert not expected


def test_what_has_ended_is_written_while_others_go_on(byte_model, files, tmp_path, monkeypatch):
    """An engine that fails in the middle: every response that it had finished is on the disk."""
    given = []
    stock = TransformersEngine.stream

    def fails_after_three(engine, requests, **options):
        for number, pair in enumerate(stock(engine, requests, **options)):
            if number == 3:
                raise KeyboardInterrupt
            given.append(pair[1].token_ids)
            yield pair

    monkeypatch.setattr(TransformersEngine, "stream", fails_after_three)
    words = arguments(byte_model, tmp_path, {"gsm8k": files["gsm8k"]}, "--samples", 4, "--max_new_tokens", 100)
    assert evaluate.main(words) == 130
    assert [record["token_ids"] for record in read_records(tmp_path)] == given
    assert len(given) == 3


def test_a_batch_of_which_a_part_is_there_is_completed_with_the_same_responses(byte_model, files, tmp_path):
    data = {"gsm8k": files["gsm8k"]}
    options = ("--samples", 4, *SHORT)
    assert evaluate.main(arguments(byte_model, tmp_path, data, *options)) == 0
    (path,) = tmp_path.glob("records-*")
    whole = path.read_bytes()
    lines = [line + b"\n" for line in whole.split(b"\n")[:-1]]
    for kept in (0, 1, 4, 7):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:50])
        assert evaluate.main(arguments(byte_model, tmp_path, data, *options)) == 0
        assert path.read_bytes() == whole, f"cut after {kept} records"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--temperature", 1), "temperature was 0.8, now 1.0"),
        (("--top_p", 1), "top_p was 0.95, now 1.0"),
        (("--repetition_penalty", 1.1), "repetition_penalty was 1.0, now 1.1"),
        (("--max_new_tokens", 13), "max_new_tokens was 12, now 13"),
        (("--seed", 1), "seed was 0, now 1"),
        (("--samples", 2), "samples was 1, now 2"),
        (("--limit", 1), "limit was None, now 1"),
        (("--dtype", "bfloat16"), "dtype was 'float32', now 'bfloat16'"),
        (("--system_prompt", ""), "prompt was None, now {'system_prompt': None, 'instruction': None, 'examples': []}"),
    ],
)
def test_a_changed_setting_is_refused_by_name(byte_model, files, tmp_path, capsys, changed, named):
    data = {"gsm8k": files["gsm8k"]}
    assert evaluate.main(arguments(byte_model, tmp_path, data, *SHORT)) == 0
    before = contents(tmp_path)
    assert evaluate.main(arguments(byte_model, tmp_path, data, *SHORT, *changed)) == 2
    assert named in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_what_changes_only_the_rounding_may_change(byte_model, files, tmp_path):
    data = {"gsm8k": files["gsm8k"]}
    assert evaluate.main(arguments(byte_model, tmp_path, data, *SHORT)) == 0
    assert evaluate.main(arguments(byte_model, tmp_path, data, "--max_new_tokens", 12, "--batch_size", 1)) == 0
    assert evaluate.main(arguments(byte_model, tmp_path, data, *SHORT, "--methods", "cod")) == 0
    assert len(keys(tmp_path)) == 4


def test_retrained_weights_under_the_old_name_are_refused(byte_model, files, tmp_path, capsys):
    model = tmp_path / "model"
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(model)
    build_model(tokenizer, seed=0, max_positions=8192).save_pretrained(model)
    assert model_fingerprint(model) is not None
    data = {"gsm8k": files["gsm8k"]}
    assert evaluate.main(arguments(model, tmp_path / "out", data, *SHORT)) == 0
    build_model(tokenizer, seed=1, max_positions=8192).save_pretrained(model)
    assert evaluate.main(arguments(model, tmp_path / "out", data, *SHORT)) == 2
    assert "model_fingerprint was" in capsys.readouterr().err


def test_changed_data_are_refused(byte_model, files, tmp_path, capsys):
    data = {"gsm8k": files["gsm8k"]}
    assert evaluate.main(arguments(byte_model, tmp_path, data, *SHORT)) == 0
    other = tmp_path / "other.jsonl"
    other.write_text(Path(files["gsm8k"]).read_text(encoding="utf-8").replace("Tom", "Ann"), encoding="utf-8")
    assert evaluate.main(arguments(byte_model, tmp_path, {"gsm8k": other}, *SHORT)) == 2
    assert "the data changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "thinking,cot"), "unknown method 'cot': expected some of thinking, no_thinking, cod, ccot"),
        (("--methods", "cod,cod"), "--methods 'cod,cod': expected different names"),
        (("--data", "gsm8k"), "--data 'gsm8k': expected BENCHMARK=PATH"),
        (("--data", "aime24=x"), "--data names aime24, which --benchmarks does not"),
        (("--temperature", "-1"), "temperature is -1.0"),
        (("--samples", "0"), "--samples is 0: expected at least 1"),
        (("--max_new_tokens", "9000"), "at most --max_new_tokens"),
        (("--adapter", "/nowhere/at/all"), "--adapter /nowhere/at/all: no such directory"),
        (("--score", "x"), "--benchmarks does not go with it"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_made(byte_model, files, tmp_path, capsys, options, message):
    data = {"gsm8k": files["gsm8k"]}
    assert evaluate.main(arguments(byte_model, tmp_path / "out", data, *SHORT, *options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_missing_model_is_named(files, tmp_path, capsys, engine):
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed here")
    code = evaluate.main(arguments("/no/such/model", tmp_path / "o", {"gsm8k": files["gsm8k"]}, "--engine", engine))
    assert code == 2
    assert "--model /no/such/model: no such directory" in capsys.readouterr().err


def test_an_unknown_benchmark_and_a_missing_file_are_named(byte_model, tmp_path, capsys):
    assert evaluate.main(["--model", str(byte_model), "--output", str(tmp_path / "o"), "--benchmarks", "gsm9k"]) == 2
    assert "gsm9k" in capsys.readouterr().err
    assert evaluate.main(arguments(byte_model, tmp_path / "o", {"gsm8k": tmp_path / "absent.jsonl"})) == 2
    assert "absent.jsonl" in capsys.readouterr().err


def test_embedded_problems_are_held_out_and_the_same_every_time(tmp_path):
    model = tmp_path / "model"
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(model)
    build_model(tokenizer, seed=0).save_pretrained(model)
    options = ["--model", str(model), "--benchmarks", "tiny", "--limit", "5", "--system_prompt", "", *map(str, SHORT)]
    for name in ("a", "b"):
        assert evaluate.main([*options, "--output", str(tmp_path / name)]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    problems = draw_problems(5, seed=0, held_out=True)
    records = sorted(read_records(tmp_path / "a"), key=lambda record: int(record["id"]))
    assert [record["question"] for record in records] == [problem.question for problem in problems]
    assert [record["ground_truth"] for record in records] == [str(problem.answer) for problem in problems]
    assert "system" not in records[0]["prompt"]


def test_ids_are_the_data_s_own_or_row_numbers_wherever_the_file_lies(files, tmp_path):
    assert [problem.id for problem in load_benchmark("math500", files["math500"])] == [
        "test/algebra/1.json",
        "test/algebra/2.json",
    ]
    assert [problem.id for problem in load_benchmark("gsm8k", files["gsm8k"])] == ["0", "1"]
    directory = tmp_path / "gsm8k"
    directory.mkdir()
    (directory / "test.jsonl").write_bytes(Path(files["gsm8k"]).read_bytes())
    by_path = load_benchmark("gsm8k", str(directory))
    assert by_path == load_benchmark("gsm8k", data_dir=str(tmp_path)) == load_benchmark("gsm8k", files["gsm8k"])
    assert [problem.ground_truth for problem in by_path] == ["7", "2,400"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["test-a-0", "own-1", "test-b-2"], ["test-a-0", "own-1", "test-b-2"]),
        (["1", "test-x-1"], ["1", "test-x-1"]),
        (["mine-train-0", "mine-train-1"], ["mine-train-0", "mine-train-1"]),  # as the loader names rows elsewhere
        ([None, "a"], ["0", "a"]),
    ],
)
def test_ids_of_the_data_stay_whatever_they_look_like(tmp_path, given, kept):
    path = tmp_path / "mine.jsonl"
    rows = [{"id": identity, "question": "q", "answer": "1"} for identity in given]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [problem.id for problem in load_benchmark("mine", str(path))] == kept


def test_questions_as_messages_keep_the_turns_before_them(tmp_path, tokenizer):
    turns = [
        {"role": "system", "content": "w1"},
        {"role": "user", "content": "w2"},
        {"role": "assistant", "content": "w3"},
    ]
    path = tmp_path / "mine.jsonl"
    row = {"prompt": [*turns, {"role": "user", "content": "w4"}], "reward_model": {"ground_truth": "5"}}
    path.write_text(json.dumps(row) + "\n")
    (problem,) = load_benchmark("mine", str(path))
    assert (problem.question, problem.ground_truth, problem.turns) == ("w4", "5", tuple(turns))
    plain = methods(["thinking"], Prompt())["thinking"]
    assert render(tokenizer, problem.question, plain, problem.turns) == tokenizer.apply_chat_template(
        row["prompt"], tokenize=False, add_generation_prompt=True
    )
    asked = methods(["thinking"], Prompt("w5"))["thinking"]
    assert render(tokenizer, problem.question, asked, problem.turns) == tokenizer.apply_chat_template(
        [{"role": "system", "content": "w5"}, *row["prompt"][1:]], tokenize=False, add_generation_prompt=True
    )


def test_rows_without_an_answer_end_the_run_or_are_left_out_and_counted(byte_model, tmp_path, capsys, caplog):
    path = tmp_path / "mine.jsonl"
    rows = [{"question": "q", "answer": "1"}, {"question": "r", "answer": None}, {"question": "s", "answer": "3"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = arguments(byte_model, tmp_path / "out", {"mine": str(path)}, *SHORT)
    assert evaluate.main(command) == 2
    assert "record 2, column 'answer': expected an answer as text or number, got None" in capsys.readouterr().err
    assert evaluate.main([*command, "--skip_bad_rows"]) == 0
    assert "skip_bad_rows: 1 rows left out; the first: " in caplog.text
    assert {record["id"] for record in read_records(tmp_path / "out")} == {"0", "2"}


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "test.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    assert len(load_benchmark("mine", "~/mine")) == 1
    assert len(load_benchmark("mine", "~/mine/test.jsonl")) == 1


def test_doubled_ids_are_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"id": 1, "question": "a", "answer": "1"}\n{"id": 1, "question": "b", "answer": "2"}\n')
    with pytest.raises(ValueError, match="1 ids come more than once"):
        load_benchmark("mine", str(path))


def test_nan_logits_end_the_run_and_leave_no_record(byte_model, files, tmp_path, capsys):
    model = Qwen3ForCausalLM.from_pretrained(byte_model)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    broken = tmp_path / "broken"
    model.save_pretrained(broken)
    byte_tokenizer().save_pretrained(broken)
    assert evaluate.main(arguments(broken, tmp_path / "out", {"gsm8k": files["gsm8k"]}, *SHORT)) == 2
    assert "the entropy of response token 0 is nan" in capsys.readouterr().err
    assert not any(contents(tmp_path / "out").values())


def test_an_adapter_changes_the_responses_and_is_part_of_the_settings(byte_model, files, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = Qwen3ForCausalLM.from_pretrained(byte_model)
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    data = {"gsm8k": files["gsm8k"]}
    assert evaluate.main(arguments(byte_model, tmp_path / "base", data, *SHORT)) == 0
    with_adapter = (*SHORT, "--adapter", tmp_path / "adapter")
    assert evaluate.main(arguments(byte_model, tmp_path / "lora", data, *with_adapter)) == 0
    base, adapted = (list(read_records(tmp_path / name)) for name in ("base", "lora"))
    assert base[0]["token_entropies"] != adapted[0]["token_entropies"]
    assert read_settings(tmp_path / "lora")["adapter_fingerprint"] == model_fingerprint(tmp_path / "adapter")


@pytest.mark.skipif(
    not all((REPOSITORY.parent / "shared" / "data" / name).is_dir() for name in BENCHMARKS),
    reason="the real benchmark files are not beside this checkout",
)
def test_real_benchmark_text_end_to_end(byte_model, tmp_path):
    options = ["--model", str(byte_model), "--output", str(tmp_path), "--benchmarks", ",".join(BENCHMARKS)]
    options += [
        "--data_dir",
        str(REPOSITORY.parent / "shared" / "data"),
        "--methods",
        "no_thinking,ccot",
        "--limit",
        "7",
    ]
    assert evaluate.main([*options, *map(str, SHORT)]) == 0
    found = keys(tmp_path)
    assert len(found) == len(set(found)) == 4 * 2 * 7


# Prompts and texts ----------------------------------------------------------------------------------------------------
def test_published_instructions_are_in_the_prompts_word_for_word(tokenizer):
    cod = render(tokenizer, "w1", METHODS["cod"])
    assert (
        "Think step by step, but only keep a minimum draft for each thinking step, with 5 words at most. Return the "
        "answer at the end of the response after a separator ####." in cod
    )
    ccot = render(tokenizer, "w1", METHODS["ccot"])
    assert "Think step-by-step through the problem to ensure you have the correct answer." in ccot
    assert "Be concise." in ccot
    assert cod.endswith("<assistant> ")


def test_the_thinking_switch_reaches_the_chat_template(tokenizer, monkeypatch):
    template = "{{ messages[-1]['content'] }}|{{ enable_thinking }}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    shown = {name: render(tokenizer, "w1", method) for name, method in METHODS.items()}
    assert shown == {"thinking": "w1|True", "no_thinking": "w1|False", "cod": "w1|True", "ccot": "w1|True"}


def test_a_template_without_a_system_role_gets_one_user_turn(tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    chosen = methods(["thinking"], Prompt("do it"))
    assert render(tokenizer, "w1", chosen["thinking"]) == "<user>do it\n\nw1"


def test_a_model_without_a_chat_template_is_asked_in_plain_text(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert (
        render(tokenizer, "w1 w2", methods(["thinking"], Prompt("do it"))["thinking"])
        == "do it\n\nQuestion: w1 w2\nAnswer:"
    )
    assert render(tokenizer, "w1", methods(["no_thinking"], Prompt(""))["no_thinking"]) == "Question: w1\nAnswer:"


def test_a_plain_prompt_gets_one_bos_token_whether_it_holds_one_or_not(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tokenizer)  # others use it as it is
    tokenizer.chat_template = None
    bos = tokenizer.convert_ids_to_tokens(0)
    tokenizer.bos_token = bos
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    plain = encode_prompt(tokenizer, "w1 w2")
    assert plain == (0, *tokenizer.convert_tokens_to_ids(["w1", "w2"]))
    assert encode_prompt(tokenizer, f"{bos} w1 w2") == plain
    assert encode_prompt(tokenizer, f"{bos} {bos} w1") == (0, 0, *tokenizer.convert_tokens_to_ids(["w1"]))  # as written


def test_a_prompt_without_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no tokens"):
        encode_prompt(tokenizer, "")


def test_token_texts_add_up_and_whole_characters_stay_whole(tokenizer):
    tokens = byte_tokenizer()
    text = "a ½ 数学 👩‍🔬 b"
    ids = [*tokens(text)["input_ids"], tokens.eos_token_id]
    shown = token_texts(tokens, ids)
    assert len(shown) == len(ids)
    assert "".join(shown) == text + "<|end|>"
    assert "\ufffd" not in "".join(shown)
    assert {"½", "数", "学"} <= set(shown)
    # bytes that are no text at all still give one string per token
    noise = torch.randint(6, len(tokens), (400,), generator=torch.Generator().manual_seed(0)).tolist()
    assert len(token_texts(tokens, noise)) == 400
    # one token per word: the space belongs to the word that follows
    assert token_texts(tokenizer, tokenizer("w1 w2 w3")["input_ids"]) == ["w1", " w2", " w3"]


def test_what_is_no_model_is_said_with_the_option(byte_model, files, tmp_path, capsys, monkeypatch):
    data = {"gsm8k": files["gsm8k"]}

    def refused(model, *options) -> str:
        assert evaluate.main(arguments(model, tmp_path / "out", data, *SHORT, *options)) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    config = byte_model / "config.json"
    assert f"--model {config} is a file: expected the directory that holds config.json" in refused(config)
    assert f"--adapter {config} is a file" in refused(byte_model, "--adapter", config)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(config, bare)
    assert f"--model {bare} holds no tokenizer" in refused(bare)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError("no")))
    assert "--model nobody/nothing is no directory here, and could not be had from the hub: no" in refused(
        "nobody/nothing"
    )
