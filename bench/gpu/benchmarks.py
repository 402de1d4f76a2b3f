"""The numbers: `python -m bench.gpu.benchmarks {head,logits} --output FILE`, one JSON record per shape and mode.

Each record holds the times of all variants from one interleaved run, the limit measured in that same run (the bare
GEMM, or a device copy), what the operation must compute or move, the memory it needed and the error of the entropies
against float64. The file is rewritten after every record, so that a stage stopped by its time limit keeps what it had;
shapes not reached are listed under "left_out".
"""

import argparse
import json
import time
from pathlib import Path

import torch

import cer_ext
from bench import baselines
from bench.gpu import measure, peers
from bench.non_leaf import NonLeaf
from cer_ext import reference

# Hidden sizes of Qwen3-4B, Qwen3-8B and Llama-3-8B with their vocabularies; tokens of a small, usual and large step.
HEAD_SHAPES = [
    (tokens, width, vocabulary)
    for tokens in (8192, 2048, 32768)
    for width, vocabulary in ((4096, 151936), (2560, 151936), (4096, 128256))
]
LOGITS_SHAPES = [(8192, 151936), (2048, 151936), (16, 151936), (1, 151936), (8192, 128256)]
TECA_SHAPES = [(1024, 4096), (64, 16384)]
SMOKE_HEAD_SHAPES = [(48, 32, 3001)]
SMOKE_LOGITS_SHAPES = [(16, 3001)]
SMOKE_TECA_SHAPES = [(8, 100)]
ERROR_ROWS = 64  # rows whose entropy is recomputed in float64


class Results:
    """Records of one stage, on disk after each of them."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.deadline = path, time.monotonic() + 60 * minutes
        self.content: dict = {"records": [], "left_out": [], "peers_not_here": {}}

    def out_of_time(self, what: str) -> bool:
        if time.monotonic() < self.deadline:
            return False
        self.content["left_out"].append(f"{what}: the stage's time was up")
        self.write()
        return True

    def add(self, record: dict) -> None:
        self.content["records"].append(record)
        self.write()
        print(summary(record), flush=True)

    def write(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1))
        temporary.replace(self.path)


def summary(record: dict) -> str:
    """One line: ours, the limit and the fastest peer."""
    times = {name: timing["median_ms"] for name, timing in record["timings"].items()}
    if "cer_ext" not in times:
        return f"{record['operation']} {record['shape']}: cer_ext failed: {record['failures'].get('cer_ext')}"
    mine = times.pop("cer_ext")
    limits = {name: t for name, t in times.items() if name.startswith("limit")}
    rivals = {name: t for name, t in times.items() if not name.startswith(("limit", "cer_ext"))}
    text = f"{record['operation']} {record['shape']}: {mine:.3f} ms"
    if "cer_ext, one pass" in times:
        text += f", in one pass {times['cer_ext, one pass']:.3f} ms"
    for name, t in limits.items():
        text += f", {mine / t:.2f}x the {name.removeprefix('limit: ')}"
    if rivals:
        best = min(rivals, key=rivals.__getitem__)
        text += f", {rivals[best] / mine:.2f}x as fast as {best}"
    return text


def record_of(operation, shape, timings, failures, *, flops=0, moved_bytes=0, errors=None) -> dict:
    ours = timings.get("cer_ext")
    rates = {}
    for name, timing in timings.items():
        seconds = timing.median_ms / 1e3
        rates[name] = {"tflops": flops / seconds / 1e12} if flops else {"gb_per_s": moved_bytes / seconds / 1e9}
        if ours:
            rates[name]["times_ours"] = timing.median_ms / ours.median_ms
    return {
        "operation": operation,
        "shape": shape,
        "flops": flops,
        "bytes": moved_bytes,
        "timings": {name: timing.as_dict() | rates[name] for name, timing in timings.items()},
        "failures": failures,
        "entropy_relative_error": errors or {},
    }


# The head: hidden (N, D), weight (V, D) -------------------------------------------------------------------------------
def head_inputs(shape: tuple[int, int, int], device: torch.device):
    tokens, width, vocabulary = shape
    generator = torch.Generator(device).manual_seed(tokens + width)
    hidden = torch.randn(tokens, width, device=device, generator=generator).bfloat16()
    weight = torch.randn(vocabulary, width, device=device, generator=generator).mul_(3 / width**0.5).bfloat16()
    target = torch.randint(vocabulary, (tokens,), device=device, generator=generator)
    return hidden, weight, target


def entropy_error(entropy: torch.Tensor | None, exact: torch.Tensor) -> float | None:
    if entropy is None:
        return None
    return ((entropy[: len(exact)].double() - exact).abs() / exact).max().item()


def head_errors(heads: dict, hidden, weight, target) -> dict[str, float | None]:
    """Largest relative entropy error over the first rows, against float64 of the same bfloat16 inputs."""
    rows = slice(0, min(ERROR_ROWS, hidden.shape[0]))
    exact = reference.linear_logprobs_and_entropy(hidden[rows].double(), weight.double(), target[rows])[1]
    errors = {}
    with torch.no_grad():
        for name, head in heads.items():
            try:
                errors[name] = entropy_error(head(hidden, weight, target, True)[1], exact)
            except Exception as reason:  # reported by the timing of the same head
                errors[name] = None
                print(f"{name}: no entropy error: {reason}")
    return errors


def head_step(head: peers.Head, hidden, weight, target, grads, wanted) -> None:
    outputs = head(hidden, weight, target, True)
    given = [(o, g) for o, g in zip(outputs, grads, strict=True) if o is not None]
    pairs = [(o, g.sum() if o.dim() == 0 else g.to(o.dtype)) for o, g in given]
    torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs])


def one_pass_step(hidden, weight, target, grads, wanted) -> None:
    """The same gradients as `head_step` from linear_token_loss: the logits are made once."""

    def loss_fn(logprobs, entropy, rows):
        return (grads[0][rows] * logprobs + grads[1][rows] * entropy).sum()

    torch.autograd.grad(cer_ext.linear_token_loss(hidden, weight, target, loss_fn).loss, wanted)


def head_variants(mode: str, heads: dict, hidden, weight, target, grads) -> dict[str, measure.Variant]:
    if mode.startswith("forward,"):
        with_entropy = mode.endswith("with entropy")
        return {name: lambda head=head: head(hidden, weight, target, with_entropy) for name, head in heads.items()}
    wanted = (hidden, weight) if mode.endswith("trained weight") else (hidden,)
    steps = {
        name: lambda head=head: head_step(head, hidden, weight, target, grads, wanted) for name, head in heads.items()
    }
    return steps | {"cer_ext, one pass": lambda: one_pass_step(hidden, weight, target, grads, wanted)}


HEAD_MODES = {  # mode: GEMMs it takes by recomputation; TFLOPS of every variant count these, also where it does fewer
    "forward, with entropy": 1,
    "forward + backward, frozen weight": 3,
    "forward, without entropy": 1,
    "forward + backward, trained weight": 4,
}


def bench_head(results: Results, device: torch.device, rounds: int, shapes) -> None:
    heads, results.content["peers_not_here"] = peers.available()
    heads = {"cer_ext": peers.ours} | heads
    for shape in shapes:
        hidden, weight, target = head_inputs(shape, device)
        if results.out_of_time(f"head {shape}"):
            continue
        errors = head_errors(heads, hidden, weight, target)
        grads = tuple(torch.randn(shape[0], device=device) for _ in range(2))
        gemm_out = torch.empty(shape[0], shape[2], device=device, dtype=hidden.dtype)
        limit = {"limit: bare GEMM": lambda h=hidden, w=weight, out=gemm_out: torch.mm(h, w.T, out=out)}
        for mode, gemms in HEAD_MODES.items():
            if results.out_of_time(f"head {shape} {mode}"):
                continue
            hidden.requires_grad_("backward" in mode)
            weight.requires_grad_(mode.endswith("trained weight"))
            detached = {"limit: bare GEMM": lambda f=limit["limit: bare GEMM"]: no_grad(f)}
            with torch.set_grad_enabled("backward" in mode):
                variants = head_variants(mode, heads, hidden, weight, target, grads)
                timings, failures = measure.interleave(variants | detached, device, rounds)
            flops = 2 * shape[0] * shape[1] * shape[2] * gemms
            results.add(record_of(f"head {mode}", shape, timings, failures, flops=flops, errors=errors))
        del hidden, weight, target, gemm_out, limit, detached, variants


@torch.no_grad()
def no_grad(run: measure.Variant) -> object:
    return run()


# From logits (N, V), and TECA -----------------------------------------------------------------------------------------
def bench_logits(results: Results, device: torch.device, rounds: int, shapes, teca_shapes) -> None:
    for shape in shapes:
        for dtype in (torch.bfloat16, torch.float32):
            if results.out_of_time(f"logits {shape} {dtype}"):
                continue
            bench_one_logits(results, device, rounds, shape, dtype)
    for shape in teca_shapes:
        entropy = torch.rand(shape, device=device)
        mask = torch.arange(shape[1], device=device) < torch.randint(1, shape[1] + 1, (shape[0], 1), device=device)
        variants = {
            "cer_ext": lambda e=entropy, m=mask: cer_ext.teca(e, m),
            "plain torch": lambda e=entropy, m=mask: baselines.plain_torch_teca(e, m),
        }
        timings, failures = measure.interleave(variants, device, rounds)
        moved = 2 * entropy.nbytes + mask.nbytes
        results.add(record_of("teca forward", shape, timings, failures, moved_bytes=moved))


def bench_one_logits(results: Results, device: torch.device, rounds: int, shape, dtype: torch.dtype) -> None:
    generator = torch.Generator(device).manual_seed(shape[0])
    logits = torch.randn(shape, device=device, generator=generator).mul_(3).to(dtype)
    target = torch.randint(shape[1], (shape[0],), device=device, generator=generator)
    other = torch.empty_like(logits)
    heads = {"cer_ext": cer_ext.logprobs_and_entropy} | baselines.FROM_LOGITS
    exact = reference.logprobs_and_entropy(logits[:ERROR_ROWS].double(), target[:ERROR_ROWS])[1]
    errors = {name: entropy_error(head(logits, target)[1], exact) for name, head in heads.items()}
    name = str(dtype).removeprefix("torch.")

    variants = {key: lambda head=head: head(logits, target) for key, head in heads.items()}
    variants["limit: copy (reads and writes: twice the bytes)"] = lambda: other.copy_(logits)
    timings, failures = measure.interleave(variants, device, rounds)
    record = record_of(f"logits forward {name}", shape, timings, failures, moved_bytes=logits.nbytes, errors=errors)
    results.add(record)

    # Backward in place: the graph is rebuilt, untimed, before each call, because the call destroys the logits.
    leaf = torch.zeros((), device=device, requires_grad=True)
    grads = tuple(torch.randn(shape[0], device=device) for _ in range(2))
    graph: dict[str, tuple] = {}
    buffer = torch.empty_like(logits)

    def fresh() -> None:
        buffer.copy_(logits)
        other.copy_(logits)
        graph["outputs"] = cer_ext.logprobs_and_entropy(NonLeaf.apply(leaf, buffer), target, inplace_backward=True)

    logprobs, entropy = cer_ext.logprobs_and_entropy(logits, target)
    log_z = logits.gather(-1, target[:, None]).squeeze(-1).float() - logprobs

    def ours() -> None:
        torch.autograd.backward(graph["outputs"], grads)

    variants = {
        "cer_ext": ours,
        "trl fold": lambda: baselines.trl_grad(other, target, log_z, entropy, grads),
        "limit: rewrite in place": lambda: other.mul_(1.0),
    }
    timings, failures = measure.interleave(variants, device, rounds, before_each=fresh)
    results.add(record_of(f"logits backward {name}", shape, timings, failures, moved_bytes=2 * logits.nbytes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("head", "logits"))
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds per record")
    parser.add_argument("--minutes", type=float, default=8.0, help="start no further shape after this long")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, on any device: a rehearsal")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = Results(args.output, args.minutes)
    if args.part == "head":
        bench_head(results, device, args.rounds, SMOKE_HEAD_SHAPES if args.smoke else HEAD_SHAPES)
    else:
        logits_shapes = SMOKE_LOGITS_SHAPES if args.smoke else LOGITS_SHAPES
        bench_logits(results, device, args.rounds, logits_shapes, SMOKE_TECA_SHAPES if args.smoke else TECA_SHAPES)
    results.write()


if __name__ == "__main__":
    main()
