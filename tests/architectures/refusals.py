"""Types that the library refuses, each with what its sentence says and what the oracle sees that makes it true."""

from __future__ import annotations

_REASONS: tuple[tuple[str, str, str], ...] = (
    ("run more than once in a pass", "runs in the order", "dory hrm_text"),
    ("a stream of several columns", "hands on no \\(windows, positions, width\\)", "deepseek_v4 hy_v4"),
    ("changes the stream", "hands a layer more|hands on no", "gemma3n_text reformer xlm"),
    ("must run on token ids alone", "does not run on token ids", "gemma4_assistant gemma4_unified_assistant"),
    ("do not run on all positions", "hands on no \\(windows, positions, width\\)", "cpmant prophetnet"),
    ("is laid out \\(positions, windows, width\\)", "hands on no", "xlnet"),
    ("logits must be computed", "has logits of more", "blt inkling2_text inkling2_loop_text"),
)

REFUSED: dict[str, tuple[str, str]] = {name: (said, fact) for said, fact, names in _REASONS for name in names.split()}
"""Patterns of the refusal and of the oracle's fact, by type."""

UNBUILT: dict[str, str] = {"gemma3n": "timm", "musicgen": "dropout", "musicgen_melody": "dropout"}
"""Types of which transformers makes no model here, and the reason: the first needs a package, the others map to a class
that takes another configuration."""

ROUGH: dict[str, float] = {"nemotron_h": 1e-4, "zamba2": 1e-4}
"""Types whose scan rounds to float32 inside a float64 pass: the largest error of their Jacobians, relative to K."""
