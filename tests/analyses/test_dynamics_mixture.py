"""A whole run of the dynamics on a mixture of experts: the margins of the routers beside the scores."""

from __future__ import annotations

import numpy as np
import torch

from probe import load_model
from probe.analyses import dynamics
from probe.jacobian import routing_margin
from tests.analyses.test_dynamics import OFF, SMALL, run
from tests.architectures import zoo
from tests.plant.saved import write_text
from tests.plant.tiny import tiny_tokenizer

SPECIAL = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}


def test_the_dataset_holds_the_margins_of_blocks_with_experts(tmp_path):
    path, text = tmp_path / "qwen3_moe", write_text(tmp_path / "text.txt")
    zoo.tiny("qwen3_moe", vocab_size=264, mlp_only_layers=[0], **SPECIAL).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    config = dynamics.Config(model=str(path), text=text, **(SMALL | OFF))
    data = run(config, tmp_path / "run").data
    margins = data["routing_margin"].transpose("layer", "query").values
    assert np.isnan(margins[0]).all()
    assert np.isfinite(margins[1:]).all()
    assert margins[1:].min() > 0

    subject = dynamics.stages.DynamicsSubject(config)
    windows, positions = subject.windows().tokens, subject.positions
    for layer in (1, 2, 3):
        expected = routing_margin(load_model(path), windows, layer, positions).flatten()
        torch.testing.assert_close(torch.from_numpy(margins[layer]), expected, rtol=1e-3, atol=1e-5, check_dtype=False)

    alone = dynamics.Config(model=str(path), text=text, context="alone", **(SMALL | OFF))
    assert "routing_margin" not in run(alone, tmp_path / "alone").data
