"""Threads that load at once get what one thread gets, and leave torch and transformers as they were."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from probe import weights
from probe.model import load_model
from tests.plant.tiny import tiny_module


@pytest.mark.guards(
    "transformers changes torch's default dtype and its own tying of weights while it makes a model",
    when="a model is loaded",
    gives="one model at a time, whichever thread asks",
)
def test_threads_that_load_at_once_get_what_one_gets(tmp_path: Path) -> None:
    module = tiny_module("llama", tie_word_embeddings=True)
    module.save_pretrained(tmp_path)
    alone = load_model(tmp_path, dtype="float64").weight_hash

    def loaded(number: int) -> str:
        if number % 3 == 2:
            return str(weights.open_weights(tmp_path).matrix(1, "q").dtype)
        return load_model(tmp_path, dtype=("float64", "bfloat16")[number % 3]).weight_hash

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(loaded, range(12)))
    assert torch.get_default_dtype() is torch.float32
    assert set(found[::3]) == {alone}
    assert len(set(found[1::3])) == 1
    assert load_model(tmp_path, dtype="float64").weight_hash == alone
