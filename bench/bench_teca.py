"""teca on (B, L) entropies beside plain torch's cumulative sums."""

import torch

import cer_ext
from bench import baselines, shapes
from bench.interleaved import compare


def inputs(device: torch.device, size: str) -> tuple[torch.Tensor, torch.Tensor]:
    responses, length = shapes.TECA["smoke" if size == "smoke" else device.type]
    generator = torch.Generator(device).manual_seed(0)
    entropy = torch.rand(responses, length, device=device, generator=generator)
    lengths = torch.randint(1, length + 1, (responses, 1), device=device, generator=generator)
    return entropy, torch.arange(length, device=device) < lengths


def bench_forward(benchmark, device, rounds, size):
    benchmark.group = "teca forward"
    entropy, mask = inputs(device, size)
    torch.testing.assert_close(cer_ext.teca(entropy, mask), baselines.plain_torch_teca(entropy, mask))
    compare(
        benchmark,
        lambda: cer_ext.teca(entropy, mask),
        {"plain torch": lambda: baselines.plain_torch_teca(entropy, mask)},
        device=device,
        rounds=rounds * 5,
        physical={"bytes": 2 * entropy.nbytes + mask.nbytes},
    )


def bench_forward_backward(benchmark, device, rounds, size):
    benchmark.group = "teca forward + backward"
    entropy, mask = inputs(device, size)
    entropy.requires_grad_()
    grad = torch.randn_like(entropy)

    def step(function):
        return torch.autograd.grad(function(entropy, mask), entropy, grad)[0]

    torch.testing.assert_close(step(cer_ext.teca), step(baselines.plain_torch_teca), rtol=1e-4, atol=1e-5)
    compare(
        benchmark,
        lambda: step(cer_ext.teca),
        {"plain torch": lambda: step(baselines.plain_torch_teca)},
        device=device,
        rounds=rounds * 5,
        physical={"bytes": 4 * entropy.nbytes + 2 * mask.nbytes},
    )
