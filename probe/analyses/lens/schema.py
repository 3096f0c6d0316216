"""The variables of the lens, each declared once: what tasks return, what the Dataset holds, what it means.

Along `fitted` stand the documents that were fitted: those of the first fit, of the second, and of the second corpus;
along `query` the tokens of held-out documents that were read.
"""

from __future__ import annotations

from probe.analysis import Schema, Variable

GROUPS = ("first", "second", "other")
"""Fits: on disjoint documents of the text, and on the second corpus."""
LENSES = (
    "jacobian",  # the first fit
    "second",  # the second fit
    "logit",  # J = I
    "displaced",  # J of another layer
    "blocks",  # J of fresh blocks between the model's own embedding and head
    "affine",
    "tuned",
    "own",  # the context's own Jacobian at the position
)
PREDICTORS = (
    "own",  # the context's own Jacobian at the position
    "first",  # the first fit
    "second",  # the second fit
    "same",  # documents of the first fit, the sum over later positions left out
)
"""Jacobians by which the change of the final state is predicted."""
DIRECTIONS = (
    "lens",  # a row of W_U J
    "logit",  # a row of W_U, predicted with J = I
    "random",  # as long, predicted by the lens
)
PARTS = ("J", "M")

SCHEMA = Schema({
    "jacobian": Variable("variant fitted source output input", "1", "J of a document", kept=False),
    "same_jacobian": Variable(
        "fitted source output input", "1", "J of a document at the source's own position", kept=False
    ),
    "translator": Variable("lens source output input", "1", "A of an affine lens h ↦ A h + b", kept=False),
    "offset": Variable("lens source output", "1", "b of an affine lens h ↦ A h + b", kept=False),
    "norm": Variable("variant fitted source", "1", "‖J‖_F of a document"),
    "alpha": Variable("variant fitted source", "1", "α = tr(J)/d of a document"),
    "gram": Variable("part source fitted fitted_other", "1", "inner products ⟨A, B⟩_F of two documents' matrices"),
    "quartic": Variable(
        "variant source pair pair_other", "1", "⟨AᵀB + BᵀA, CᵀD + DᵀC⟩_F of four documents' M, halved for equal pairs"
    ),
    "pair_trace": Variable("variant source pair", "1", "tr(AᵀB + BᵀA) of two documents' M, halved for equal pairs"),
    "singular_value": Variable("variant part source index", "1", "singular values of the mean matrix"),
    "mean_alpha": Variable("variant source", "1", "α = tr(J)/d of the mean matrix"),
    "identity_share": Variable("variant source", "1", "share of ‖J‖_F² of the mean matrix that α I has"),
    "noise_edge": Variable("source", "1", "largest singular value of the mean of entries with random signs"),
    "kl": Variable("lens source query", "nat", "KL divergence of the lens's distribution from the output's"),
    "agrees": Variable("lens source query", "1", "the lens's first token is the output's"),
    "output_rank": Variable("lens source query", "tokens", "tokens that the lens puts before the output's first"),
    "cosine": Variable("predictor source query", "1", "cosine of predicted and measured change of the final state"),
    "predicted": Variable("direction source steered query", "1", "predicted change of the token's logit"),
    "measured": Variable("direction source steered query", "1", "measured change of the token's logit"),
})
