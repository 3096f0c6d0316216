"""The variables of the dynamics, each declared once: what tasks return, what the Dataset holds, what it means.

Scores and products are NaN where a variant was not measured: controls at one position of each window, and everything
that costs more on fewer windows still (see `probe.analyses.dynamics.Config`).
"""

from __future__ import annotations

from probe.analysis import Schema, Variable
from probe.spectra.decomposition import MEANINGS

MATRICES = ("J", "K")
SCORES = {
    name: MEANINGS[name]
    for name in (
        *("complex_fraction", "rotation_fraction", "antisymmetric_fraction", "henrici_departure", "commutator_norm"),
        *("numerical_abscissa", "spectral_abscissa", "spectral_radius", "frobenius_norm", "stable_rank"),
        *("effective_rank", "energy_effective_rank", "participation_ratio"),
    )
}
"""Scores of a matrix, by their names in `probe.spectra`, with their long names."""
NULLS = (
    "norm_matched",  # updates replaced by Gaussian ones of the same ‖K‖
    "shuffled_depth",  # blocks in random order
    "schur_shuffle",  # non-normal part of K shuffled
    "schur_normal",  # non-normal part of K removed
    "schur_normal_matched",  # the same, at equal ‖K‖
    "schur_normal_transposed",  # the same through Kᵀ, at equal ‖K‖
    "schur_normal_rotated",  # the same through a rotated K, at equal ‖K‖
    "symmetrised",  # J symmetrised at equal ‖J‖
    "symmetrised_ov",  # W_O W_V of each head symmetrised
)
"""Products that stand beside the Jacobians' own; the first three are drawn, and have `draws` draws."""
EPSILONS = tuple(10 ** (power / 2) for power in range(-6, 1))
"""Sizes of the step over the window's median ‖u_l‖: half a decade apart, from 1e-3 to 1."""
HORIZONS = ("1", "2", "4", "8", "all")
"""Blocks between the step and the comparison; "all": up to the final norm."""
DIRECTIONS = (
    "random",
    "singular",  # top right singular vector of J
    "other",  # towards another token's state
    "principal",  # first principal direction of the states
)
"""Directions of the step."""
BOUNDS = ("estimate", "low", "high")
SIDES = ("input", "output")

_STEP = "direction horizon epsilon start query"

SCHEMA = Schema(
    {name: Variable("variant matrix layer query", "1", meaning) for name, meaning in SCORES.items()}
    | {
        "identity_share": Variable("variant layer query", "1", "share of ‖J‖_F² that α I has, α = tr(J)/d"),
        "product_identity_share": Variable(
            "variant depth query", "1", "share of ‖C‖_F² that α I has, C = J_l ⋯ J_1, α = tr(C)/d"
        ),
        "product_participation_ratio": Variable("variant depth query", "1", "(Σσ²)²/Σσ⁴ of J_l ⋯ J_1"),
        "product_effective_rank": Variable("variant depth query", "1", "effective rank of J_l ⋯ J_1"),
        "product_log_norm": Variable("variant depth query", "nat", "ln ‖J_l ⋯ J_1‖_F"),
        "lyapunov_exponent": Variable("depth exponent query", "nat/block", "ln σ_i(J_l ⋯ J_1) / l"),
        "product_overlap": Variable(
            "depth k query", "1", "overlap of the top right singular subspace with that one block before"
        ),
        "eigenvalue_real": Variable("layer cloud index", "1", "real part of the eigenvalues of K"),
        "eigenvalue_imaginary": Variable("layer cloud index", "1", "imaginary part of the eigenvalues of K"),
        # what another analysis finds in the run: see `probe.analyses.dynamics.kept`
        "jacobian": Variable("layer query output input", "1", "J, with keep_matrices", kept=False),
        "routing_margin": Variable("layer query", "1", "gap from the chosen experts' scores to the next one"),
        "tokens": Variable("window token", None, "token ids of the measured windows", kept=False),
        "positions": Variable("window chosen", None, "measured positions of each window", kept=False),
        "null_participation_ratio": Variable("null draw depth query", "1", "(Σσ²)²/Σσ⁴ of the product under a null"),
        "null_effective_rank": Variable(
            "null depth query", "1", "effective rank of the product under a null, first draw"
        ),
        "null_antisymmetric_fraction": Variable("null layer query", "1", "‖K − Kᵀ‖ / (2‖K‖) under a null"),
        "coupling": Variable("block other_block query", "1", "‖ |U_jᵀ K_i V_j| − S_i ‖ / ‖S_i‖, 0 = coupled"),
        "eigenvector_condition": Variable("layer eigenvector_window", "1", "κ₂(V) of K"),
        "polar_rotation": Variable("layer eigenvector_window", "rad", "rotation of J's polar factor"),
    }
    | {
        f"mean_{name}": Variable("bound layer matrix", "1", f"{meaning}, of the mean matrix")
        for name, meaning in SCORES.items()
    }
    | {
        "mean_spread": Variable("layer", "1", "root-mean-square ‖J − J̄‖ / ‖K̄‖"),
        "directions": Variable(
            "side layer coordinate leading",
            "1",
            "leading right (input) and left (output) singular vectors of the mean K",
        ),
        "product_of_averages": Variable("bound depth", "1", "(Σσ²)²/Σσ⁴ of the product of averages"),
        "average_of_products": Variable("bound depth", "1", "(Σσ²)²/Σσ⁴ of the average of products"),
        "perturb_error": Variable(_STEP, "1", "‖Δ − Cεδ‖ / ‖Δ‖"),
        "perturb_cosine": Variable(_STEP, "1", "cosine of Δ and Cεδ"),
        "step_length": Variable("start query", "1", "median ‖u‖ of the window"),
        "epsilon_at_tenth": Variable(
            "direction horizon start query", "1", "ε over median ‖u‖ at a relative error of 10 %"
        ),
        "kreiss_constant": Variable("chosen", "1", "Kreiss constant of K, half-plane form, a lower bound"),
        "chosen_spectral_abscissa": Variable("chosen", "1", "spectral abscissa of K"),
        "chosen_numerical_abscissa": Variable("chosen", "1", "numerical abscissa of K"),
        "pseudospectrum_sigma_min": Variable("chosen imaginary real", "1", "pseudospectrum: sigma_min"),
        "pseudospectrum_real": Variable("chosen real", "1", "pseudospectrum: real"),
        "pseudospectrum_imaginary": Variable("chosen imaginary", "1", "pseudospectrum: imaginary"),
        "pseudospectrum_spectrum": Variable("chosen index part", "1", "pseudospectrum: spectrum"),
    }
)
