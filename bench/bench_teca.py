"""teca on (B, L) entropies beside plain torch's cumulative sums."""

from __future__ import annotations

import torch

import cer_ext
from bench import peers
from bench.comparison import by_entry, compare, disagreements


def inputs(shape: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    responses, length = shape
    generator = torch.Generator(device).manual_seed(0)
    entropy = torch.rand(responses, length, device=device, generator=generator)
    lengths = torch.randint(1, length + 1, (responses, 1), device=device, generator=generator)
    return entropy, torch.arange(length, device=device) < lengths


def bench_forward(benchmark, teca_shape, device, rounds):
    benchmark.group = "teca forward"
    entropy, mask = inputs(teca_shape, device)
    calls = {"plain torch": lambda: (peers.plain_torch_teca(entropy, mask),)}
    compare(
        benchmark,
        lambda: cer_ext.teca(entropy, mask),
        calls,
        device=device,
        rounds=rounds * 5,
        physical={"bytes": 2 * entropy.nbytes + mask.nbytes},
        failures=disagreements(calls, (cer_ext.teca(entropy, mask),), by_entry(1e-5), "plain torch"),
    )


def bench_forward_backward(benchmark, teca_shape, device, rounds):
    benchmark.group = "teca forward + backward"
    entropy, mask = inputs(teca_shape, device)
    entropy.requires_grad_()
    grad = torch.randn_like(entropy)

    def step(function):
        return torch.autograd.grad(function(entropy, mask), entropy, grad)

    calls = {"plain torch": lambda: step(peers.plain_torch_teca)}
    compare(
        benchmark,
        lambda: step(cer_ext.teca),
        calls,
        device=device,
        rounds=rounds * 5,
        physical={"bytes": 4 * entropy.nbytes + 2 * mask.nbytes},
        failures=disagreements(calls, step(cer_ext.teca), by_entry(1e-4, absolute=1e-5), "plain torch"),
    )
