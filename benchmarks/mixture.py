"""One call of `block_jacobian` on a mixture of experts, as a script that any commit of the library can run.

    PYTHONPATH=/tmp/base python benchmarks/mixture.py 128

prints the CPU time of one thread, in seconds, of a block of Mixtral's form: d = 576, eight experts of 1,536, two of
them chosen, eight positions of a window of that length.
"""

from __future__ import annotations

import sys
import time

import torch
import transformers

from probe import block_jacobian, load_model

WIDTH, INNER, POSITIONS = 576, 1536, 8


def seconds(length: int, rounds: int = 3) -> float:
    """The smallest of the rounds, after a first call."""
    config = transformers.MixtralConfig(
        vocab_size=96,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    model = load_model(transformers.MixtralForCausalLM(config).eval())
    tokens = torch.randint(3, 90, (1, length), generator=torch.Generator().manual_seed(0))
    positions = torch.linspace(length // 2, length - 1, POSITIONS).long()[None]
    block_jacobian(model, tokens, 1, positions)
    times = []
    for _ in range(rounds):
        start = time.process_time()
        block_jacobian(model, tokens, 1, positions)
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(seconds(int(sys.argv[1])))
