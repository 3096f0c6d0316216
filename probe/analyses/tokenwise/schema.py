"""The variables of layer updates, each declared once: what tasks return, what the Dataset holds, what it means."""

from __future__ import annotations

from probe.analysis import Schema, Variable

SCHEMA = Schema({
    # states of fitting text and of scored text, read by the later stages
    "state": Variable("layer token coordinate", "1", "state that enters a block", kept=False),
    "token_document": Variable("token", None, "document of a fitting token", kept=False),
    "token_window": Variable("token", None, "window of a fitting token", kept=False),
    "token_id": Variable("token", None, "id of a fitting token", kept=False),
    "query_state": Variable("layer query coordinate", "1", "state that enters a block, scored tokens", kept=False),
    "write": Variable("layer query coordinate", "1", "what the block's mixing wrote", kept=False),
    "off_position": Variable("layer query coordinate", "1", "the part of it from other positions", kept=False),
    "whole": Variable("layer whole_window place coordinate", "1", "states at every position", kept=False),
    # maps and their geometry
    "relative_error": Variable("map target layer query", "1", "‖r‖ / ‖target‖"),
    "cos_update_fit": Variable("map target layer query", "1", "cosine of target and fit"),
    "cos_update_residual": Variable("map target layer query", "1", "cosine of target and residual"),
    "cos_fit_residual": Variable("map target layer query", "1", "cosine of fit and residual"),
    "explained_variance": Variable("map layer", "1", "1 − Σ‖r‖² / Σ‖u − ū‖²"),
    "update_norm": Variable("layer query", "1", "‖u‖"),
    "state_norm": Variable("layer query", "1", "‖h‖"),
    "share": Variable("map centring vector k layer query", "1", "share in the dominant tokenwise subspace"),
    "share_of_update": Variable("centring k layer query", "1", "share of u in the dominant subspace of u"),
    "directions": Variable("layer coordinate leading", "1", "dominant directions of the deciding map's updates"),
    "n_outliers": Variable("layer", "1", "outlier coordinates left out of the subspace"),
    "residual_attention_cosine": Variable("map layer query", "1", "cosine of residual and attention write"),
    "residual_offposition_cosine": Variable("map layer query", "1", "cosine of residual and off-position write"),
    "residual_attention_share": Variable("map layer query", "1", "share of ‖r‖² along the attention write"),
    "residual_offposition_share": Variable("map layer query", "1", "share of ‖r‖² along the offposition write"),
    "cos_permuted": Variable("map layer query", "1", "cosine of u and a map fitted to permuted updates"),
    "relative_error_permuted": Variable("map layer query", "1", "‖r‖ / ‖u‖ of a map fitted to permuted updates"),
    "error_independent": Variable("layer query", "1", "‖r‖ / ‖u‖ of a linear map fitted on the other half"),
    "floor": Variable("map layer query", "1", "‖r‖ / ‖u‖ on the block run on the token alone"),
    "sweep_error": Variable("neighbours rank layer query", "1", "‖r‖ / ‖u‖ of the local map"),
    "sweep_error_in_sample": Variable("neighbours rank layer", "1", "median ‖r‖ / ‖u‖ with the query in the bank"),
    "instability": Variable("neighbours layer query", "1", "‖û_A − û_B‖ / ‖u‖ of two disjoint banks"),
    "mlp_flat": Variable("map layer", "1", "validation curve flat at the end", fill=1),
    # what is left out of the next state
    "residual": Variable("layer replaced query coordinate", "1", "residual of a map", kept=False),
    "control_residual": Variable("layer control draw query coordinate", "1", "control of equal norms", kept=False),
    "residual_whole": Variable("layer replaced whole_window place coordinate", "1", "residual everywhere", kept=False),
    # what the output does
    "kl": Variable("map layer query", "nat", "KL(p ‖ p replaced), one position"),
    "loss_change": Variable("map layer query", "nat", "change of the next token's loss"),
    "logit_distance": Variable("map layer query", "1", "‖z replaced − z‖"),
    "logit_cosine": Variable("map layer query", "1", "cosine of the logits"),
    "top1": Variable("map layer query", "1", "same most probable token"),
    "kl_all": Variable("map layer query", "nat", "KL(p ‖ p replaced), all counted positions replaced"),
    "kl_later": Variable("map layer query", "nat", "KL summed over this and later positions"),
    "kl_control": Variable("control draw layer query", "nat", "KL(p ‖ p replaced) for a residual of equal norm"),
    # tokens
    "entropy": Variable("query", "nat", "entropy of the output"),
    "loss": Variable("query", "nat", "loss of the next token"),
    "frequency": Variable("query", None, "log count in the fitting text, plus 1"),
    "regime": Variable("layer query", None, "third of the error of an independent map"),
    "regime_own": Variable("layer query", None, "third of the deciding map's own error"),
    "regime_layer": Variable("layer", None, "third of the layers' mean errors"),
})
