"""What is asked of the library, each beside the oracle's own answer."""

from __future__ import annotations

import copy
import itertools
import math

import torch

import probe
from probe import patching, replay
from probe.jacobian import cross_jacobian, cumulative_jacobian, operator, site_jacobian
from tests.architectures.case import (
    BFLOAT16,
    FLOAT32,
    Case,
    NothingToAskError,
    WrongError,
    check,
    relative,
    within,
)
from tests.architectures.matrices import explained
from tests.architectures.oracle import Oracle, at, own_states


@check(quick=True)
def capture(case: Case) -> float:
    """States at all depths, to the bit those of hooks of our own on the same module."""
    model = case.single
    stream = probe.capture(model, case.tokens)
    own = own_states(case.module, case.oracle.path, case.tokens)
    depth = len(own) - 1
    if model.n_layers != depth:
        raise WrongError(math.inf, f"{model.n_layers} layers, where {case.oracle.path} has {depth}")
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(depth)] + [f"blocks.{depth - 1}.hook_resid_post"]
    for site, state in zip(sites, own, strict=True):
        if not torch.equal(stream[site], state.float()):
            raise WrongError(relative(stream[site], state), f"{site}, to the bit")
    found = probe.capture(case.double, case.tokens, dtype="model")
    states = [*case.oracle.plain.inputs, case.oracle.plain.outputs[-1]]
    return max(case.agree(found[site], state, site) for site, state in zip(sites, states, strict=True))


@check(quick=True)
def head(case: Case) -> float:
    """Logits from the last state, and by a pass, are the module's."""
    model, plain = case.double, case.oracle.plain
    passed = case.agree(model.forward(case.tokens), plain.logits, "the logits of a pass")
    with torch.no_grad():
        found = model.unembed(plain.outputs[-1])
    return max(passed, case.agree(found, plain.logits, "the head on the last state"))


@check(quick=True)
def jacobian(case: Case) -> float:
    """Every block's Jacobian at positions of a real context, float64: rows by autograd, a column by differences."""
    worst = 0.0
    for layer, expected in enumerate(case.expected_rows):
        column = case.oracle.columns(layer, case.positions, case.direction)
        own = relative(expected @ case.direction, column @ case.rows.T, (column - case.direction) @ case.rows.T)
        assert own < 1e-6, f"the oracle's derivatives of block {layer} differ from its differences by {own:.1e}"
        found = case.jacobian(layer)
        error = case.agree(case.rows @ found, expected, f"rows of J of block {layer}", expected - case.rows)
        what = f"a column of J of block {layer}"
        other = case.agree(found @ case.direction, column, what, column - case.direction)
        worst = max(worst, error, other)
    layer, eye = len(case.expected_rows) - 1, torch.eye(case.oracle.d, dtype=torch.float64)
    moved = case.jacobian(layer, of="update")
    return max(worst, case.agree(moved, found - eye, "J − I"))


@check(quick=True)
def alone(case: Case) -> float:
    """Jacobians of each state as a one-token input: real one-token passes, fed with the state."""
    worst = 0.0
    for layer, expected in enumerate(case.oracle.rows_alone(case.positions, case.rows)):
        found = case.jacobian(layer, context="alone")
        what = f"rows of J of block {layer} alone"
        worst = max(worst, case.agree(case.rows @ found, expected, what, expected - case.rows))
    return worst


@check(quick=True)
def sites(case: Case) -> float:
    """What blocks add to the stream adds up, and all that passes from attention to the output passes the middle."""
    model, depth = case.double, case.double.n_layers
    inside = [name for name in model.sites if name.startswith("blocks.") and name.split(".")[-1] not in ENDS]
    if not inside:
        raise NothingToAskError("the library names no sites inside the blocks")
    seen = probe.capture(model, case.tokens, sites=model.sites, dtype="model")
    worst = 0.0
    for layer in range(depth):
        names = [name for name in model.sites if name.startswith(f"blocks.{layer}.")]
        before, after = case.oracle.plain.inputs[layer], case.oracle.plain.outputs[layer]
        middle = f"blocks.{layer}.hook_resid_mid"
        cut = names.index(middle) if middle in names else 0
        first = sum((seen[name] for name in names[:cut] if name.endswith("_out")), before)
        if middle in names and len(names[:cut]) > 1:
            worst = max(worst, case.agree(seen[middle], first, f"the sum up to the middle of block {layer}"))
        added = [seen[name] for name in names[cut:] if name.endswith("_out")]
        if added:
            last = sum(added, seen[middle] if middle in names else before)
            last = last * _scalar(case, layer, last, after)
            worst = max(worst, case.agree(last, after, f"the sum that leaves block {layer}"))
        if middle in names:
            _, _, through = case.parts(layer)
            expected = case.expected_rows[layer]
            what = f"rows of J of block {layer} through hook_resid_mid"
            worst = max(worst, case.agree(through, expected, what, expected - case.rows))
    return worst


ENDS = ("hook_resid_pre", "hook_resid_post")


def _scalar(case: Case, layer: int, total: torch.Tensor, after: torch.Tensor) -> float:
    """The scalar by which a block multiplies what leaves it, if it holds one of that value; else 1."""
    held = {float(value) for _, value in case.oracle.layers[layer].named_buffers() if value.numel() == 1}
    scalar = float((total * after).sum() / (total * total).sum())
    return next((value for value in held if abs(value - scalar) < 1e-6), 1.0)


@check(quick=True, side=True)
def part(case: Case) -> float:
    """The Jacobians of attention and of the MLP, through the tensor that the library calls the stream between them."""
    worst, asked = 0.0, False
    for layer in range(case.double.n_layers):
        if f"blocks.{layer}.hook_resid_mid" not in case.double.sites:
            continue
        asked = True
        attention, mlp, _ = case.parts(layer)
        expected = {"attention": attention, "mlp": mlp}
        for name, rows in expected.items():
            found = case.jacobian(layer, part=name)
            what = f"rows of J of the {name} of block {layer}"
            worst = max(worst, case.agree(case.rows @ found, rows, what, rows - case.rows))
    if not asked:
        raise NothingToAskError("the library names no stream between attention and MLP")
    return worst


@check(quick=True, side=True)
def off_position(case: Case) -> float:
    """What attention writes of other positions: the module's own attention with each position's own value left out."""
    model = case.double
    recorded = replay.record(model, case.tokens, case.positions)
    worst, asked = 0.0, False
    for layer in range(model.n_layers):
        found = recorded.off_position_write(layer)
        site = f"blocks.{layer}.hook_attn_out"
        if site in model.sites and case.oracle.attends(layer):
            asked = True
            write = case.oracle.off_position(layer, *case.place(layer, "hook_attn_out"))
            write = write * getattr(model.site(site), "factor", 1.0)
            what = f"the write of other positions in block {layer}"
            worst = max(worst, case.agree(found, at(write, case.positions), what))
    if not asked:
        raise NothingToAskError("the oracle knows attention alone, and the library's site of what it writes")
    return worst


@check(quick=True)
def continuity(case: Case) -> float:
    """|cos| of the leading singular vectors of neighbouring layers' matrices, by plain SVD of `projections`."""
    model = case.double
    data = probe.weights.continuity(model)
    worst = 0.0
    layers = [model.projections(layer) for layer in range(model.n_layers)]
    for name in map(str, data["projection"].values):
        if not all(name in matrices for matrices in layers):
            continue
        bases = [torch.linalg.svd(matrices[name].double(), full_matrices=False) for matrices in layers]
        for space, vectors in (("input", [b[2][0] for b in bases]), ("output", [b[0][:, 0] for b in bases])):
            cosines = torch.stack([(one @ after).abs() for one, after in itertools.pairwise(vectors)])
            found = torch.as_tensor(data[f"{space}_continuity"].sel(projection=name).values)
            worst = max(worst, within(found[: len(cosines)], cosines, 1e-3, f"the {space} continuity of {name}"))
    return worst


@check(quick=True)
def matrices(case: Case) -> float:
    """Each matrix acts as the model does, and q, k, v are what attention is handed."""
    worst, asked = 0.0, False
    for layer in range(case.double.n_layers):
        named = case.double.projections(layer)
        asked = asked or bool(named)
        worst = max(worst, explained(case.oracle, layer, named))
    if not asked:
        raise NothingToAskError("the library names no matrices")
    return worst


@check()
def windows(case: Case) -> float:
    """Jacobians of 1, 3 and 4 windows at once, at other positions in each."""
    wide = Case(case.module, windows=4, n_rows=2)
    wide.double = case.double
    worst = 0.0
    for layer, expected in enumerate(wide.expected_rows):
        for count in (1, 3, 4):
            asked = (wide.tokens[:count], layer, wide.positions[:count])
            found = probe.block_jacobian(case.double, *asked, dtype=case.dtype).double()
            moved = expected[:count] - wide.rows
            what = f"rows of J of block {layer} with {count} windows"
            worst = max(worst, wide.agree(wide.rows @ found, expected[:count], what, moved))
    return worst


@check()
def float32(case: Case) -> float:
    """Jacobians of the module as it is, in float32."""
    worst = 0.0
    for layer, expected in enumerate(case.expected_rows):
        found = probe.block_jacobian(case.single, case.tokens, layer, case.positions).double()
        what = f"rows of J of block {layer} in float32"
        worst = max(worst, within(case.rows @ found, expected, FLOAT32, what, expected - case.rows))
    return worst


@check()
def bfloat16(case: Case) -> float:
    """Jacobians and the head of the module in bfloat16, beside an oracle of the rounded weights on the same states."""
    module = copy.deepcopy(case.module).bfloat16()
    try:
        states = own_states(module, case.oracle.path, case.tokens)
    except Exception as error:
        raise NothingToAskError(f"the module does not run in bfloat16: {type(error).__name__}") from error
    oracle = Oracle(module, case.tokens)
    expected = oracle.rows(case.positions, case.rows, states=[state.double() for state in states[:-1]])
    model = probe.load_model(module)
    worst = 0.0
    for layer, rows in enumerate(expected):
        found = probe.block_jacobian(model, case.tokens, layer, case.positions).double()
        what = f"rows of J of block {layer} in bfloat16"
        worst = max(worst, within(case.rows @ found, rows, BFLOAT16, what, rows - case.rows))
    return worst


@check()
def cumulative(case: Case) -> float:
    """The product over depth: autograd from the first layer's input to the last one's output."""
    depth = case.double.n_layers
    expected = case.oracle.rows_through(0, case.positions, case.rows)
    found = cumulative_jacobian(case.double, case.tokens, 0, depth, case.positions, dtype=case.dtype)
    return case.agree(case.rows @ found.double(), expected, "rows of the product over depth", expected - case.rows)


@check()
def logits(case: Case) -> float:
    """The Jacobian from a layer's input to the logits."""
    layer = case.double.n_layers // 2
    rows = case.random(3, case.oracle.plain.logits.shape[-1])
    expected = case.oracle.rows_through(layer, case.positions, rows, logits=True)
    site = f"blocks.{layer}.hook_resid_pre"
    found = site_jacobian(case.double, case.tokens, site, "logits", case.positions, dtype=case.dtype)
    return case.agree(rows @ found.double(), expected, f"rows of ∂logits/∂{site}")


@check()
def cross(case: Case) -> float:
    """The Jacobian of a block from one position to a later one."""
    worst, early, late = 0.0, 3, 6
    leaves = case.oracle.leaves(case.oracle.plain.inputs)
    done = case.oracle.run(case.tokens, leaves, grad=True)
    for layer, leaf in leaves.items():
        found = cross_jacobian(case.double, case.tokens, layer, out_position=late, in_position=early, dtype=case.dtype)
        rows = []
        for row in case.rows:
            read = (done.outputs[layer][:, late] @ row).sum()
            (gradient,) = torch.autograd.grad(read, leaf, retain_graph=True, allow_unused=True)
            rows.append(gradient[:, early])
        expected = torch.stack(rows, 1)
        if expected.norm() == 0 or expected.norm() < 1e-12 * case.rows.norm():
            if found.norm() > 1e-9:
                raise WrongError(math.inf, f"J of block {layer} between positions, which is zero")
            continue
        worst = max(
            worst, case.agree(case.rows @ found.double(), expected, f"rows of J of block {layer} between positions")
        )
    return worst


@check(side=True)
def products(case: Case) -> float:
    """The operator of a block, and of all blocks from there, times vectors from both sides."""
    window, layer = case.windows - 1, case.double.n_layers - 1
    position = int(case.positions[window, 0])
    one = operator(case.double, case.tokens, layer, position, window=window, dtype=case.dtype)
    expected = case.expected_rows[layer][window, 0]
    found = torch.from_numpy(one.rmatmat(case.rows.T.numpy())).double().T
    worst = case.agree(found, expected, f"rows of the operator of block {layer}", expected - case.rows)
    column = case.oracle.columns(layer, case.positions, case.direction)[window, 0]
    found = torch.from_numpy(one.matvec(case.direction.numpy())).double()
    worst = max(worst, case.agree(found, column, f"a column of the operator of block {layer}", column - case.direction))
    whole = operator(
        case.double, case.tokens, 0, position, window=window, to_layer=case.double.n_layers, dtype=case.dtype
    )
    expected = case.oracle.rows_through(0, case.positions, case.rows)[window, 0]
    found = torch.from_numpy(whole.rmatmat(case.rows.T.numpy())).double().T
    return max(worst, case.agree(found, expected, "rows of the operator over depth", expected - case.rows))


@check()
def patched(case: Case) -> float:
    """Outputs where a block's output is replaced, at one position, there and later, and at all positions."""
    model, oracle, layer = case.double, case.oracle, 0
    if model.n_layers < 2:
        raise NothingToAskError("there is one layer")
    recorded = replay.record(model, case.tokens, case.positions)
    alternatives, count = 2, case.positions.shape[1]
    size = oracle.plain.outputs[layer].std()
    shape = (case.windows, alternatives, count, oracle.d)
    states = at(oracle.plain.outputs[layer], case.positions)[:, None] + size * case.random(*shape)
    kl, distance, later = (torch.zeros(alternatives, case.windows, count, dtype=torch.float64) for _ in range(3))
    for alternative in range(alternatives):
        for column in range(count):
            state = oracle.plain.inputs[layer + 1].clone()
            window, where = torch.arange(case.windows), case.positions[:, column]
            state[window, where] = states[:, alternative, column]
            changed = oracle.run(case.tokens, {layer + 1: state}).logits
            p, q = oracle.plain.logits.log_softmax(-1), changed.log_softmax(-1)
            divergence = (p.exp() * (p - q)).sum(-1)
            kl[alternative, :, column] = divergence[window, where]
            distance[alternative, :, column] = (changed - oracle.plain.logits).norm(dim=-1)[window, where]
            for w in range(case.windows):
                later[alternative, w, column] = divergence[w, where[w] :].sum()
    one = patching.one_position(recorded, layer, states.to(case.dtype), measures=("kl", "logit_distance"))
    worst = within(one["logit_distance"], distance, FLOAT32, "distance of logits, one position replaced")
    worst = max(worst, within(one["kl"], kl, FLOAT32, "KL, one position replaced"))
    all_later = patching.one_position_later(recorded, layer, states.to(case.dtype))
    worst = max(worst, within(all_later, later, FLOAT32, "KL there and later, one position replaced"))
    length = case.tokens.shape[1]
    everywhere = oracle.plain.outputs[layer] + size * case.random(case.windows, length, oracle.d)
    counted = torch.ones(case.windows, length, dtype=torch.bool)
    counted[:, 0] = False
    state = torch.where(counted[..., None], everywhere, oracle.plain.inputs[layer + 1])
    changed = oracle.run(case.tokens, {layer + 1: state}).logits
    moved = (changed - oracle.plain.logits).norm(dim=-1).gather(1, case.positions)
    found = patching.all_positions(
        recorded, layer, everywhere[:, None].to(case.dtype), counted, measures=("logit_distance",)
    )
    return max(worst, within(found["logit_distance"][0], moved, FLOAT32, "distance of logits, all positions replaced"))
