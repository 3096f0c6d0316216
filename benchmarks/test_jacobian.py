"""Block Jacobians against what one would use instead, and how their cost grows.

The clock is the CPU time of one thread, so that other programs on the machine count for less; the smallest of the
rounds counts. A Jacobian by `jacrev` on the whole sequence takes long: few of its rows are measured, at one position,
and all d counted as costing the same.

FLOPs counted for one position: 2 d² d_q (W_O) + 2 d d_q d_head (queries) + 2 d² d_ff (W_down) + 2 d³ (the product of
both sub-layers), and what a product of the same matrices reaches in the same run is the peak.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import peak
from probe import replay
from probe.jacobian import JacobianOptions, method_of, recorded_jacobian
from probe.model import LanguageModel, load_model
from tests.plant.tiny import ARCHITECTURES, CONFIGURATIONS

LAYER, LENGTH, POSITIONS, ROWS, ROUNDS = 5, 128, 8, 32, 5


def best(function: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds of CPU time."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def recorded(model: LanguageModel, length: int, positions: int) -> replay.Context:
    tokens = torch.randint(3, model.n_vocab - 3, (1, length), generator=torch.Generator().manual_seed(0))
    return replay.record(model, tokens, torch.linspace(length // 2, length - 1, positions).long()[None])


def of_sequence(context: replay.Context, layer: int, rows: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The first `rows` entries of the block's output at the last chosen position, as a function of its input there."""
    sequence, t = context.states[layer], int(context.positions[0, -1])

    def after(state: Tensor) -> Tensor:
        changed = torch.cat([sequence[:, :t], state[None, None], sequence[:, t + 1 :]], dim=1)
        out = context.block_on_sequences(layer, changed, torch.zeros(1, dtype=torch.int64))
        return out[0, t, :rows]

    return after, sequence[0, t]


def of_one_token(context: replay.Context, layer: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The block's output at the last chosen position by its own code, over a prefix cache."""
    last = context.select(slice(0, 1), slice(-1, None))
    return lambda state: last.replay(layer, state[None, None, None])[0, 0, 0], last.state(layer)[0, 0]


def flops(model: LanguageModel, layer: int) -> float:
    weights = model.projections(layer)
    d, d_q = weights["o"].shape
    d_head = d_q // int(model.module.config.num_attention_heads)
    return 2.0 * d * d * d_q + 2.0 * d * d_q * d_head + 2.0 * d * d * weights["down"].shape[1] + 2.0 * d**3


def gemm_peak(model: LanguageModel, layer: int) -> float:
    """FLOPs a second of W_down times a matrix of its own shape."""
    down = model.projections(layer)["down"].detach()
    other, out = torch.randn(down.shape[1], down.shape[0]), torch.empty(down.shape[0], down.shape[0])
    return 2.0 * down.shape[0] * down.numel() / best(lambda: torch.mm(down, other, out=out), 20)


def test_block_jacobians_of_the_default_model() -> None:
    torch.set_num_threads(1)
    model = load_model("smollm2-135m-instruct-q4")
    context, d = recorded(model, LENGTH, POSITIONS), model.d_model
    results: dict[str, float] = {}
    found = recorded_jacobian(context, LAYER)
    for method in ("analytic", "frozen"):
        options = JacobianOptions(method=method)
        results[f"probe, {method}"] = (
            best(lambda options=options: recorded_jacobian(context, LAYER, options)) / POSITIONS
        )
    token, at = of_one_token(context, LAYER)
    rows, point = of_sequence(context, LAYER, ROWS)
    with sdpa_kernel(SDPBackend.MATH):
        results["jacrev, one token on a prefix cache"] = best(lambda: torch.func.jacrev(token)(at), 2)
        assert (torch.func.jacrev(token)(at) - found[0, -1]).norm() < 1e-4 * found[0, -1].norm()
        results["jacrev, whole sequence"] = best(lambda: torch.func.jacrev(rows)(point), 2) * d / ROWS
        assert (torch.func.jacrev(rows)(point) - found[0, -1, :ROWS]).norm() < 1e-4 * found[0, -1].norm()
        vectorised = best(lambda: torch.autograd.functional.jacobian(rows, point, vectorize=True), 2)
        results["functional.jacobian, whole sequence"] = vectorised * d / ROWS
    reached, most = flops(model, LAYER) / results["probe, analytic"], gemm_peak(model, LAYER)
    print(f"\n{model.name}, d = {d}, T = {LENGTH}, P = {POSITIONS}; whole sequence: {ROWS} of {d} rows, one position")
    print(f"{'a (layer, position)':38}{'ms':>10}{'x probe':>9}")
    for name, seconds in results.items():
        print(f"{name:38}{1e3 * seconds:10.1f}{seconds / results['probe, analytic']:9.1f}")
    print(
        f"{flops(model, LAYER) / d**3:.2f} d^3 FLOPs at {reached / 1e9:.0f} GFLOP/s, {reached / most:.0%} of the "
        f"{most / 1e9:.0f} that W_down times a matrix reaches"
    )


def llama(width: int) -> LanguageModel:
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 64 * 64,
        num_hidden_layers=1,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 192),
        max_position_embeddings=1024,
    )
    return load_model(transformers.LlamaForCausalLM(config).eval())


def test_how_the_cost_of_a_position_grows() -> None:
    torch.set_num_threads(1)
    print(f"\n{'d':>6}{'T':>6}{'P':>4}{'ms a position':>15}{'x T = 64':>10}{'share of GEMM peak':>20}")
    for width in (192, 576, 1152):
        model, first = llama(width), 0.0
        for length, positions in ((64, 1), (64, 8), (64, 32), (256, 8), (1024, 8)):
            context = recorded(model, length, positions)
            seconds = best(lambda context=context: recorded_jacobian(context, 0), 3) / positions
            share = flops(model, 0) / seconds / gemm_peak(model, 0)
            first = seconds if (length, positions) == (64, 8) else first
            growth = f"{seconds / first:10.2f}" if positions == 8 else f"{'':10}"
            print(f"{width:6}{length:6}{positions:4}{1e3 * seconds:15.2f}{growth}{share:20.0%}")


def wide(architecture: str, width: int) -> LanguageModel:
    config_name, class_name, settings = CONFIGURATIONS[architecture]
    sizes = {"hidden_size": width, "n_embd": width, "word_embed_proj_dim": width}
    inner = {"intermediate_size": 3 * width, "ffn_dim": 3 * width, "head_dim": 64, "query_pre_attn_scalar": 64}
    length = {"max_position_embeddings": LENGTH, "n_positions": LENGTH}
    if "mamba" in architecture:
        inner = {"head_dim": 64, "num_heads": 2 * width // 64}
    changed = {name: value for name, value in (sizes | inner | length).items() if name in settings}
    config = getattr(transformers, config_name)(**settings | changed)
    return load_model(getattr(transformers, class_name)(config).eval())


def test_the_method_of_each_architecture() -> None:
    torch.set_num_threads(1)
    width, rows_at_once = 256, 8
    print(f"\nd = {width}, T = {LENGTH}, P = {POSITIONS}; jacrev: {rows_at_once} of {width} rows at one position")
    print(f"{'':10}{'method':>10}{'ms':>9}{'x of jacrev':>13}")
    for architecture in ARCHITECTURES:
        model = wide(architecture, width)
        context = recorded(model, LENGTH, POSITIONS)
        recorded_jacobian(context, 1)
        seconds = best(lambda context=context: recorded_jacobian(context, 1), 3) / POSITIONS
        rows, point = of_sequence(context, 1, rows_at_once)
        with sdpa_kernel(SDPBackend.MATH):
            reference = best(lambda rows=rows, point=point: torch.func.jacrev(rows)(point), 2) * width / rows_at_once
        print(f"{architecture:10}{method_of(model):>10}{1e3 * seconds:9.2f}{reference / seconds:13.0f}")


BUDGETS = (2**25, 2**27, 2**29)


def measure_peak(method: str, budget: int) -> float:
    model = load_model("smollm2-135m-instruct-q4")
    context = recorded(model, LENGTH, POSITIONS)
    first = JacobianOptions(method=method, memory=budget, chunk=1)
    recorded_jacobian(context, LAYER, first)  # loads what only a first call loads
    found = context.states[LAYER].new_empty((POSITIONS, model.d_model, model.d_model))
    return peak.measured(lambda: recorded_jacobian(context, LAYER, JacobianOptions(method=method, memory=budget))) - (
        found.nbytes / 2**20
    )


def test_memory_stays_within_the_budget() -> None:
    print(f"\nMB beyond the result, {POSITIONS} positions, T = {LENGTH}, d = 576")
    print(f"{'budget, MB':24}" + "".join(f"{budget // 2**20:>8}" for budget in BUDGETS))
    for method in ("analytic", "frozen"):
        peaks = [peak.in_fresh_process(__file__, method, str(budget)) for budget in BUDGETS]
        print(f"{method:24}" + "".join(f"{one:8.0f}" for one in peaks))


if __name__ == "__main__":
    print(json.dumps(measure_peak(sys.argv[1], int(sys.argv[2]))))
