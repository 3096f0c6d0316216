"""Block Jacobians of every family at one width: time per FLOP beside Llama's, experts, and blocks that carry a state.

Random weights, d = 576, one thread's CPU time; the smallest of the rounds counts, and the rounds of the families go in
turn with Llama's, so that both meet the same machine. FLOPs are those that `torch.utils.flop_counter` counts, with
eager attention and experts: of the block's own pass on the chosen positions, and of the products that the Jacobian
makes.

With PROBE_BASE, a folder with another commit (`git worktree add /tmp/base 44f5a59`), its time for the mixture stands
beside ours.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING

from benchmarks import mixture
from probe import replay
from probe.jacobian import block_jacobian, recorded_jacobian
from probe.model import HuggingFaceModel, load_model
from tests.architectures import zoo

WIDTH, INNER, HEADS, KEY_HEADS, POSITIONS, LENGTH = 576, 1536, 9, 3, 8, 128
FIELDS: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), KEY_HEADS),
    **dict.fromkeys(("head_dim", "rotary_dim"), WIDTH // HEADS),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), INNER),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 1024),
    "sliding_window": 1024,
    "query_pre_attn_scalar": 64,
}
FAMILIES = (
    "gpt2 gpt_neox opt phi qwen3 gemma3_text olmo3 mistral ministral ministral3 qwen2 smollm3 gemma gemma2 olmo olmo2 "
    "phi3 glm glm4 exaone exaone4 cohere cohere2 granite hunyuan_v1_dense seed_oss arcee apertus nanochat nemotron "
    "helium starcoder2 stablelm gptj gpt_neo gpt_bigcode falcon bloom mpt codegen persimmon vaultgemma diffllama "
    "bitnet internlm3 minicpm3"
)


SPECIAL: dict[str, dict[str, int]] = {
    "diffllama": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 72},  # in pairs
    "minicpm3": {
        "num_key_value_heads": HEADS,
        "q_lora_rank": 288,
        "kv_lora_rank": 192,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
    },
}


def wide(name: str, **changes: Any) -> HuggingFaceModel:
    """A random model of two blocks, d = 576."""
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[name])}
    chosen = {key: FIELDS[key] for key in FIELDS if key in fields}
    config = zoo.configuration(name, 2, **{**chosen, **SPECIAL.get(name, {}), **changes})
    torch.manual_seed(0)
    model = load_model(transformers.AutoModelForCausalLM.from_config(config).eval())
    assert isinstance(model, HuggingFaceModel)
    return model


def recorded(model: HuggingFaceModel, length: int = LENGTH) -> replay.Context:
    tokens = torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(0))
    return replay.record(model, tokens, torch.linspace(length // 2, length - 1, POSITIONS).long()[None])


def seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turn(functions: list[Callable[[], Any]], rounds: int = 4) -> list[float]:
    """The smallest time of each, all called in each round."""
    for function in functions:
        function()
    return [min(times) for times in zip(*([seconds(one) for one in functions] for _ in range(rounds)), strict=True)]


def counted(function: Callable[[], Any]) -> float:
    """FLOPs of a call; the first one also proves that a block runs as it did, so it is the second that counts."""
    function()
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


def pass_flops(model: HuggingFaceModel, context: replay.Context, layer: int) -> float:
    """FLOPs of the block's own pass on as many positions as are asked about, eager."""
    for part, names in (("attn", "eager"), ("experts", "eager")):
        setter = getattr(model.module, f"set_{part}_implementation", None)
        if setter is not None:
            setter(names)
    few = replay.record(model, context.tokens[:, :POSITIONS], torch.arange(POSITIONS)[None], layers=[layer])
    return counted(lambda: few.block_on_sequences(layer, few.states[layer], torch.tensor([0])))


def test_time_per_flop_of_every_family() -> None:
    torch.set_num_threads(1)
    first = recorded(wide("llama"))
    base = pass_flops(wide("llama"), first, 1), counted(partial(recorded_jacobian, first, 1))
    print(f"\nd = {WIDTH}, P = {POSITIONS}; time per FLOP beside Llama's: of the block's pass, of the products made")
    print(f"{'':18}{'method':>10}{'ms':>8}{'pass':>8}{'products':>10}")
    for name in FAMILIES.split():
        model = wide(name)
        context = recorded(model)
        here, there = in_turn([partial(recorded_jacobian, one, 1) for one in (context, first)])
        flops = pass_flops(model, context, 1), counted(partial(recorded_jacobian, context, 1))
        ratios = [here / own / (there / llama) for own, llama in zip(flops, base, strict=True)]
        method = model.method(1)[0]
        print(f"{name:18}{method:>10}{1e3 * here / POSITIONS:8.1f}{ratios[0]:8.2f}{ratios[1]:10.2f}")


def gemm_peak() -> float:
    """FLOPs a second of W_down times a matrix of its own shape."""
    left, right, out = torch.randn(WIDTH, INNER), torch.randn(INNER, WIDTH), torch.empty(WIDTH, WIDTH)
    calls = 20
    least = in_turn([lambda: [torch.mm(left, right, out=out) for _ in range(calls)]])[0]
    return calls * 2.0 * WIDTH * WIDTH * INNER / least


def of_a_commit(folder: Path, length: int) -> float:
    """The time of a call on a mixture, by the code in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(mixture.__file__)), str(length)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def test_a_mixture_of_experts() -> None:
    torch.set_num_threads(1)
    base, chosen, lengths = os.environ.get("PROBE_BASE"), 2, (64, 128, 256, 1024)
    # W_O, queries and values, two experts, and the product of both sub-layers
    flops = 2.0 * WIDTH**2 * (WIDTH + 3 * WIDTH // HEADS + chosen * INNER + WIDTH)
    model = wide("mixtral", num_local_experts=8, num_experts_per_tok=chosen)
    found = in_turn([partial(recorded_jacobian, recorded(model, length), 1) for length in lengths])
    ours = dict(zip(lengths, (one / POSITIONS for one in found), strict=True))
    print(f"\neight experts of {INNER}, two chosen, d = {WIDTH}, P = {POSITIONS}")
    print("    ms a position: " + ", ".join(f"{1e3 * one:.1f} at T = {length}" for length, one in ours.items()))
    print(f"    {flops / ours[LENGTH] / gemm_peak():.0%} of the GEMM peak at T = {LENGTH}, by {flops / 1e9:.2f} GFLOP")
    print("    beside T = 64: " + ", ".join(f"{one / ours[64]:.2f}" for one in ours.values()))
    if base is not None:
        here, there = (of_a_commit(folder, LENGTH) for folder in (Path(__file__).parents[1], Path(base)))
        print(f"    a whole call at T = {LENGTH} takes {there / here:.1f} times as long by the other commit")


DELTA = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64, "linear_value_head_dim": 64}
STATE = {"mamba_n_heads": 18, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1}
CARRYING: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {**DELTA, "layer_types": ["full_attention", "linear_attention"]},
    "qwen3_next": {**DELTA, "layer_types": ["full_attention", "linear_attention"], "mlp_only_layers": [0, 1]},
    "olmo_hybrid": {**DELTA, "layer_types": ["full_attention", "linear_attention"]},
    "bamba": {**STATE, "attn_layer_indices": [0], "mamba_expand": 2},
    "lfm2": {"layer_types": ["full_attention", "conv"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": {**STATE, "mamba_d_ssm": 2 * WIDTH},
    "rwkv": {"attention_hidden_size": WIDTH},
}


def reverse(context: replay.Context, layer: int, some: int) -> Callable[[], Tensor]:
    """`jacrev` of some rows of a block's Jacobian at the last chosen position, through its call on the sequence."""
    sequence, last = context.states[layer], int(context.positions[0, -1])

    def rows(state: Tensor) -> Tensor:
        changed = torch.cat([sequence[:, :last], state[None, None], sequence[:, last + 1 :]], dim=1)
        after: Tensor = context.block_on_sequences(layer, changed, torch.zeros(1, dtype=torch.int64))
        return after[0, last, :some]

    def call() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            found: Tensor = torch.func.jacrev(rows)(sequence[0, last])
            return found

    return call


def test_blocks_that_carry_a_state() -> None:
    torch.set_num_threads(1)
    some = 8
    print(f"\nd = {WIDTH}, P = {POSITIONS}; jacrev on the whole sequence: {some} of {WIDTH} rows at one position")
    print(f"{'':16}{'ms a position':>14}{'x of jacrev':>13}{'whole call':>12}{'T = 512 / 64':>14}")
    for kind, settings in CARRYING.items():
        model = wide(kind, **settings)
        context, short, long = (recorded(model, length) for length in (LENGTH, 64, 512))
        own, few, many = in_turn([partial(recorded_jacobian, one, 1) for one in (context, short, long)], 2)
        call = in_turn([partial(block_jacobian, model, context.tokens, 1, context.positions)], 2)[0]
        slow = seconds(reverse(context, 1, some)) * WIDTH / some * POSITIONS
        print(f"{kind:16}{1e3 * own / POSITIONS:14.1f}{slow / own:13.0f}{slow / call:12.0f}{many / few:14.2f}")


def test_a_call_for_one_layer() -> None:
    torch.set_num_threads(1)
    model = load_model("smollm2-135m-instruct-q4")
    assert isinstance(model, HuggingFaceModel)
    context, layer, some = recorded(model), 5, 32
    (call,) = in_turn([partial(block_jacobian, model, context.tokens, layer, context.positions)])
    slow = in_turn([reverse(context, layer, some)], 2)[0] * model.d_model / some * POSITIONS
    print(f"\nblock_jacobian of layer {layer} of {model.name}, P = {POSITIONS}: {slow / call:.0f} times jacrev")
