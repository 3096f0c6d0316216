"""The variables of a communities run, each declared once: what tasks return, what the Dataset holds, what it means.

A node is a coordinate of the stream or a neuron of an MLP. Values are NaN, and communities −1, where a view leaves
nodes out; gains are NaN where a view was not measured: at all but the first position of each window.
"""

from __future__ import annotations

from probe.analysis import Schema, Variable

SCHEMA = Schema({
    # states of both halves of the text, read by the later stages
    "state": Variable("layer token node", "1", "state of a node", kept=False),
    "token_document": Variable("token", None, "document of a token", kept=False),
    "norm_gain": Variable("layer norm node", "1", "gains of the norms that read the stream", kept=False),
    # the graph and the communities of a layer, in any view
    "label": Variable("layer node", None, "community, by falling size; −1: left out", kept=False),
    "present": Variable("layer node", None, "whether the view keeps a node", kept=False),
    "edge_ends": Variable("layer edge end", None, "the two ends, among the nodes that are kept", kept=False),
    "edge_weight": Variable("layer edge", "1", "correlation", kept=False),
    "given": Variable("layer covariates node", None, "variance, |mean|, gains of norms, outlier", kept=False),
    # the communities of the model's own graph, and of null graphs
    "resolution": Variable("layer", "1", "resolution, in units of the mean |w|"),
    "excess": Variable("layer", "1", "stability less that of null graphs, at this resolution"),
    "stability": Variable("layer", "1", "mean pairwise AMI of seeds"),
    "quality": Variable("layer", "1", "objective per edge weight, consensus"),
    "modularity": Variable("layer", "1", "signed modularity"),
    "run_quality": Variable("layer", "1", "objective per edge weight, mean of single runs"),
    "run_stability": Variable("layer", "1", "mean pairwise AMI of fewer and shorter runs"),
    "null_quality": Variable("layer null_draw", "1", "objective per edge weight of a null graph, single runs"),
    "null_stability": Variable("layer null_draw", "1", "mean pairwise AMI of seeds of a null graph, single runs"),
    "profile_stability": Variable("layer profiled", "1", "mean pairwise AMI of seeds"),
    "profile_communities": Variable("layer profiled", "1", "communities of two and more"),
    "profile_null_stability": Variable("layer profiled", "1", "stability of null graphs"),
    "topology": Variable("measure layer node", "1", "place of a node in its graph"),
    "resampled_quality": Variable("layer resample", "1", "quality of resampled documents, single runs"),
    "resampled_half_ami": Variable("layer resample", "1", "half_ami of resampled documents, single runs"),
    "half_ami": Variable("layer", "1", "AMI of the two halves of the text"),
    "layer_ami": Variable("layer other_layer", "1", "AMI of the communities of two layers"),
    # places and gains of the nodes in every view
    "squares": Variable("query node", "1", "squared gains of a view, at the tokens where it is measured", kept=False),
    "community": Variable("view layer node", None, "community, by falling size; −1: left out", fill=-1),
    "participation": Variable("view layer node", "1", "participation coefficient"),
    "permuted_rho": Variable("view layer permutation", "1", "coupling with places permuted within degree deciles"),
    "covariate": Variable("view layer covariates node", None, "variance, |mean|, gains of norms, outlier"),
    "square_gain": Variable("view layer node query", "1", "squared gain ‖K e_i‖² of a node at a token"),
    # the operator that a block is, and what it does to whole communities
    "antisymmetric_fraction": Variable("layer query", "1", "‖K − Kᵀ‖ / (2‖K‖)"),
    "rotation_fraction": Variable("layer query", "1", "Σ|Im λ| / Σ|λ| of K"),
    "community_amplification": Variable(
        "matrix amplification layer largest", "1", "amplification of the largest communities"
    ),
    "community_z": Variable("matrix amplification layer largest", "1", "amplification of the largest communities"),
    "jacobian_ami": Variable("layer", "1", "AMI with the communities of |K| + |K|ᵀ"),
    # other choices
    "grid_rho": Variable("ablated half edges neighbours method factor", "1", "coupling under other choices"),
    "grid_permuted_rho": Variable(
        "ablated half edges neighbours method factor grid_permutation",
        "1",
        "the same with places permuted within degree deciles",
    ),
    # drawings
    "place": Variable("drawn node axis", None, "where a node is drawn"),
    "link": Variable("drawn link_index end", None, "the strongest links"),
    "link_weight": Variable("drawn link_index", None, "their weights"),
    "largest": Variable("drawn node place_of_token", None, "tokens at which a node peaks, by number", kept=False),
    "largest_token": Variable("drawn node place_of_token", None, "tokens at which |h_i − mean| peaks"),
})
