"""Types that are refused as they are loaded, each with a piece of the sentence; types that cannot be built here."""

from __future__ import annotations

REFUSED: dict[str, str] = {
    "blt": "logits must be computed",
    "cpmant": "do not run on all positions",
    "deepseek_v4": "several columns",
    "dory": "more than once",
    "gemma3n_text": "changes the stream",
    "gemma4_assistant": "token ids alone",
    "gemma4_unified_assistant": "token ids alone",
    "hrm_text": "more than once",
    "hy_v4": "several columns",
    "inkling2_loop_text": "logits must be computed",
    "inkling2_text": "logits must be computed",
    "prophetnet": "do not run on all positions",
    "reformer": "changes the stream",
    "xlm": "changes the stream",
    "xlnet": "positions, windows",
}
UNBUILT: dict[str, str] = {"gemma3n": "timm", "musicgen": "dropout", "musicgen_melody": "dropout"}
ROUGH: dict[str, float] = {"nemotron_h": 1e-4, "zamba2": 1e-4}
"""Types whose scan rounds to float32 inside a float64 pass: the largest error of their Jacobians, relative to K."""
