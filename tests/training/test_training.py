"""Training of toys: symmetries of the parts, seeds together against seeds alone, optimisers, resume."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from probe.errors import InputError
from probe.geometry import haar_frame
from probe.text import load_windows
from probe.training import (
    Arm,
    Bytes,
    NextByte,
    Optimiser,
    Regression,
    Schedule,
    Shape,
    Size,
    SmallTransformer,
    Stack,
    ToyMLP,
    next_byte_loss,
    snapshot_steps,
    train,
)
from probe.training.activations import FUNCTION_OF, normalise
from probe.training.data import generator
from probe.training.names import NORMS, RADIAL, TOY_FORMS
from probe.training.optimisers import orthogonalise
from probe.training.transformer import ARM_OF

SHAPE = Shape(width=12, blocks=3, inputs=6, outputs=4)
SIZE = Size(width=16, blocks=2, heads=2)
D = SHAPE.width


def haar(seed: int) -> Tensor:
    return haar_frame(D, D, generator(seed), dtype=torch.float64)


def normal(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=generator(seed), dtype=torch.float64)


def toy(seed: int = 0, **changes: object) -> ToyMLP:
    options = {"form": "stream", "residual": True, "activation": "gelu", "norm": "none", "scale": 0.5} | changes
    return ToyMLP(seed=seed, shape=SHAPE, **options).double()  # type: ignore[arg-type]


class TestSymmetry:
    @pytest.mark.parametrize("name", [*RADIAL, "identity"])
    def test_commutes_with_rotations(self, name: str):
        z, R = 2 * normal(50, D), haar(1)
        torch.testing.assert_close(FUNCTION_OF[name](z @ R.mT), FUNCTION_OF[name](z) @ R.mT)

    @pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh"])
    def test_pointwise_ones_do_not(self, name: str):
        z, R = 2 * normal(50, D), haar(1)
        turned, after = FUNCTION_OF[name](z @ R.mT), FUNCTION_OF[name](z) @ R.mT
        assert (turned - after).norm() > 0.1 * after.norm()

    @pytest.mark.parametrize("name", RADIAL)
    def test_the_radial_ones_are_no_linear_maps_and_keep_the_signal(self, name: str):
        z = normal(50, D)
        found = FUNCTION_OF[name](z)
        assert (FUNCTION_OF[name](2 * z) - 2 * found).norm() > 0.1 * z.norm()
        factors = found.norm(dim=1) / z.norm(dim=1)
        assert (factors > 0.5).all()
        assert (factors < 1.5).all()

    def test_known_values(self):
        z = torch.ones(1, D, dtype=torch.float64)  # r = 1
        torch.testing.assert_close(FUNCTION_OF["radial_gate"](z), z)
        torch.testing.assert_close(FUNCTION_OF["radial_squash"](z), torch.tanh(z))

    def test_a_gradient_at_zero_is_finite(self):
        for name in RADIAL:
            z = torch.zeros(2, D, dtype=torch.float64, requires_grad=True)
            FUNCTION_OF[name](z).sum().backward()
            assert z.grad is not None
            assert z.grad.isfinite().all()

    @pytest.mark.parametrize(("norm", "symmetric"), [("rms_bare", True), ("rms", False), ("layer", False)])
    def test_only_rms_norm_without_gain_commutes(self, norm: str, symmetric: bool):
        h, R, gain = normal(50, D) + 0.5, haar(1), 1 + 0.5 * normal(D, seed=2)
        gain = None if norm == "rms_bare" else gain
        turned, after = normalise(h @ R.mT, norm, gain), normalise(h, norm, gain) @ R.mT
        assert torch.allclose(turned, after) is symmetric

    def test_layer_norm_without_gain_does_not_commute_either(self):
        h, R = normal(50, D) + 0.5, haar(1)
        assert not torch.allclose(normalise(h @ R.mT, "layer"), normalise(h, "layer") @ R.mT)

    def test_norms_against_torch(self):
        h, gain, bias = normal(50, D), normal(D, seed=1), normal(D, seed=2)
        torch.testing.assert_close(normalise(h, "layer", gain, bias), functional.layer_norm(h, (D,), gain, bias, 1e-12))
        torch.testing.assert_close(normalise(h, "rms", gain), functional.rms_norm(h, (D,), gain, 1e-12))
        assert normalise(h, "none") is h
        with pytest.raises(ValueError, match="one of none, layer"):
            normalise(h, "batch")

    @pytest.mark.parametrize(("activation", "symmetric"), [("radial_gate", True), ("identity", True), ("gelu", False)])
    @pytest.mark.parametrize("norm", ["none", "rms_bare"])
    def test_in_stream_form_every_layer_may_be_rotated_on_its_own(self, activation: str, symmetric: bool, norm: str):
        """I + W_l → R_l (I + W_l) R_{l−1}ᵀ; a norm before W is undone by the rotation only if it commutes."""
        module, x = toy(activation=activation), normal(20, SHAPE.inputs)
        before = module(x)
        R = [haar(seed) for seed in range(SHAPE.blocks + 1)]
        eye = torch.eye(D, dtype=torch.float64)
        with torch.no_grad():
            module.embed.copy_(R[0] @ module.embed)
            module.reader.copy_(
                torch.stack([R[i + 1] @ (eye + W) @ R[i].mT - eye for i, W in enumerate(module.reader)])
            )
            module.readout.copy_(module.readout @ R[-1].mT)
        assert torch.allclose(module(x), before) is symmetric

    @pytest.mark.parametrize("form", ["branch", "block2"])
    def test_in_the_other_forms_only_one_rotation_is_left(self, form: str):
        module, x = toy(form=form, activation="radial_squash"), normal(20, SHAPE.inputs)
        before, R = module(x), haar(1)
        with torch.no_grad():
            module.embed.copy_(R @ module.embed)
            module.reader.copy_(module.reader @ R.mT if form == "block2" else R @ module.reader @ R.mT)
            if form == "block2":
                module.writer.copy_(R @ module.writer)
            module.readout.copy_(module.readout @ R.mT)
        torch.testing.assert_close(module(x), before)
        with torch.no_grad():
            module.reader[0].copy_(module.reader[0] @ R.mT)  # one layer alone
        assert not torch.allclose(module(x), before)


class TestToy:
    @pytest.mark.parametrize("form", TOY_FORMS)
    @pytest.mark.parametrize("residual", [True, False])
    def test_the_formula(self, form: str, residual: bool):
        module, x = toy(form=form, residual=residual, activation="tanh", norm="rms"), normal(5, SHAPE.inputs)
        with torch.no_grad():
            module.gain.copy_(1 + 0.1 * normal(*module.gain.shape))
        h = x @ module.embed.T
        for layer in range(SHAPE.blocks):
            n = functional.rms_norm(h, (D,), module.gain[layer], 1e-12)
            z = n @ module.reader[layer].T
            if form == "block2":
                z = torch.tanh(z) @ module.writer[layer].T
                h = h + z if residual else z
            elif form == "stream":
                h = torch.tanh(h + z if residual else z)
            else:
                h = h + torch.tanh(z) if residual else torch.tanh(z)
        torch.testing.assert_close(module(x), h @ module.readout.T)

    @pytest.mark.parametrize("changed", [{"form": "block"}, {"activation": "relu6"}, {"norm": "batch"}])
    def test_a_part_that_is_not_there_is_refused(self, changed: dict[str, str]):
        with pytest.raises(InputError, match="of a toy must be one of"):
            toy(0, **changed)

    def test_the_start_depends_on_the_seed_and_the_scale_alone(self):
        one, other = toy(), toy(form="branch", residual=False, activation="relu", norm="layer", scale=1.0)
        torch.testing.assert_close(2 * one.reader, other.reader)
        torch.testing.assert_close(one.embed, other.embed)
        assert not torch.allclose(one.reader, toy(seed=1).reader)
        assert toy(scale=0.5).reader.std().item() == pytest.approx(0.5 / D**0.5, rel=0.1)

    def test_gains_are_folded_into_the_matrices_that_read(self):
        module = toy(form="block2", norm="layer")
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            module.gain.copy_(normal(*module.gain.shape))
        acting = module.acting(parameters, "reader")
        torch.testing.assert_close(acting[1], module.reader[1] @ torch.diag(module.gain[1]))
        assert module.acting(parameters, "writer") is module.writer

    @pytest.mark.parametrize("norm", NORMS)
    def test_every_parameter_gets_a_gradient(self, norm: str):
        module = toy(form="block2", norm=norm)
        module(normal(5, SHAPE.inputs)).square().sum().backward()
        assert all(p.grad is not None and (p.grad != 0).any() for p in module.parameters())


class TestData:
    def test_the_data_of_a_seed_and_step_are_the_same_whatever_else_is_drawn(self):
        both, alone = Regression((3, 7), "nonlinear", batch=8), Regression((7,), "nonlinear", batch=8)
        for step in (70, 0, 69):
            for a, b in zip(both.batch(step), alone.batch(step), strict=True):
                torch.testing.assert_close(a[1:], b)
        assert not torch.equal(both.batch(0)[0], both.batch(1)[0])
        assert not torch.equal(both.batch(0)[0][0], both.batch(0)[0][1])

    @pytest.mark.parametrize("teacher", ["nonlinear", "linear"])
    def test_teachers_are_standardised_and_as_linear_as_they_say(self, teacher: str):
        x, y = (part[0].double() for part in Regression((0,), teacher).held_out(4000))
        assert y.square().mean() == pytest.approx(1.0, rel=0.05)
        assert y.mean(0).abs().max() < 0.1
        residual = y - x @ torch.linalg.lstsq(x, y).solution
        explained = 1 - residual.square().sum() / y.square().sum()
        assert (explained > 0.999) if teacher == "linear" else (0.2 < explained < 0.9)

    def test_bytes_follow_one_another(self):
        windows = torch.arange(220).reshape(20, 11)
        data = NextByte((0, 1), windows[:15], windows[15:], batch=4)
        x, y = data.batch(5)
        assert x.shape == (2, 4, 10)
        torch.testing.assert_close(y, x + 1)
        assert x.max() < 165
        assert not torch.equal(x[0], x[1])
        held, _ = data.held_out(3)
        assert held[1, :, 0].tolist() == [165, 176, 187]
        assert min(x.min().item() for x, _ in data.probes(4)) >= 165

    def test_a_text_is_read_byte_by_byte(self, tmp_path: Path):
        words = " = One = \n\n naïve text\n"
        (tmp_path / "text.txt").write_text(words * 3, encoding="utf-8")
        windows = load_windows(Bytes(), text=tmp_path / "text.txt", windows=None, window_length=12, part="fit")
        assert bytes(windows.tokens.flatten().tolist()[:24]) in (words * 2).encode()


class TestOptimisers:
    def test_orthogonalising_keeps_singular_vectors_and_levels_the_values(self):
        U, V = haar_frame(20, 12, generator(0), dtype=torch.float64), haar(1)
        sigma = torch.linspace(1.0, 0.05, D, dtype=torch.float64)
        found = orthogonalise(U @ torch.diag(sigma) @ V.mT)
        along = U.mT @ found @ V
        torch.testing.assert_close(U @ along @ V.mT, found)
        assert (along - torch.diag(along.diagonal())).abs().max() < 1e-10
        assert along.diagonal().min() > 0.6
        assert along.diagonal().max() < 1.25
        torch.testing.assert_close(orthogonalise(found.mT), orthogonalise(found).mT)
        assert orthogonalise(torch.zeros(2, 3)).abs().max() == 0

    def test_muon_turns_hidden_matrices_by_the_polar_factor(self):
        optimiser = Optimiser("muon", 0.0, hidden=("W",), decayed=("W",), learning_rate=0.1)
        W, G = normal(1, 1, D, D), normal(1, 1, D, D, seed=1)
        stepped = {"W": W.clone()}
        optimiser.step(stepped, {"W": G}, optimiser.begin(stepped), 0)
        torch.testing.assert_close(stepped["W"], W - 0.1 * orthogonalise(G))

    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    def test_adamw_is_torchs(self, weight_decay: float):
        ours = {"W": normal(4, 3)}
        theirs = torch.nn.Parameter(ours["W"].clone())
        optimiser = Optimiser("adamw", weight_decay, hidden=(), decayed=("W",), learning_rate=0.01)
        moments, reference = optimiser.begin(ours), torch.optim.AdamW([theirs], lr=0.01, weight_decay=weight_decay)
        for step in range(5):
            theirs.grad = normal(4, 3, seed=step)
            reference.step()
            optimiser.step(ours, {"W": theirs.grad}, moments, step)
        torch.testing.assert_close(ours["W"], theirs.data)

    def test_sgd_is_torchs(self):
        ours = {"W": normal(4, 3)}
        theirs = torch.nn.Parameter(ours["W"].clone())
        optimiser = Optimiser("sgd", 0.0, hidden=(), decayed=())
        moments, reference = optimiser.begin(ours), torch.optim.SGD([theirs], lr=0.05, momentum=0.9)
        for step in range(5):
            theirs.grad = normal(4, 3, seed=step)
            reference.step()
            optimiser.step(ours, {"W": theirs.grad}, moments, step)
        torch.testing.assert_close(ours["W"], theirs.data)

    @pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
    def test_a_rate_of_zero_moves_nothing(self, kind: str):
        optimiser = Optimiser(kind, 0.1, hidden=("W",), decayed=("W",), learning_rate=0.0)
        stepped = {"W": normal(1, 1, 3, 3)}
        optimiser.step(stepped, {"W": normal(1, 1, 3, 3, seed=1)}, optimiser.begin(stepped), 0)
        assert torch.equal(stepped["W"], normal(1, 1, 3, 3))

    def test_gains_do_not_decay(self):
        optimiser = Optimiser("adamw", 1.0, hidden=(), decayed=("W",), learning_rate=0.5)
        parameters = {"W": torch.ones(2), "gain": torch.ones(2)}
        optimiser.step(parameters, {n: torch.zeros(2) for n in parameters}, optimiser.begin(parameters), 0)
        assert (parameters["W"].tolist(), parameters["gain"].tolist()) == ([0.5, 0.5], [1.0, 1.0])

    def test_an_unknown_one(self):
        with pytest.raises(ValueError, match="one of adamw, sgd, muon"):
            Optimiser("adam", 0.0, hidden=(), decayed=())


def experiment(seeds: tuple[int, ...], kind: str, **changes: object) -> tuple[Stack, Regression, Optimiser]:
    modules = [toy(seed, **changes) for seed in seeds]
    data = Regression(seeds, "nonlinear", inputs=6, outputs=4, batch=16, dtype=torch.float64)
    hidden = set(modules[0].roles.values())
    optimiser = Optimiser(kind, 0.1, hidden=hidden, decayed=ToyMLP.decayed)
    return Stack(modules, functional.mse_loss), data, optimiser


def weights(parameters: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"reader": parameters["reader"].clone(), "before": before["reader"].clone()}


SCHEDULE = Schedule(6, (0, 2, 6))


class TestTogether:
    @pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
    @pytest.mark.parametrize("form", TOY_FORMS)
    def test_seeds_together_are_seeds_alone(self, kind: str, form: str):
        changes = {"form": form, "norm": "layer", "activation": "radial_gate"}
        stack, data, optimiser = experiment((0, 4, 9), kind, **changes)
        seen, together = train(stack, data.batch, optimiser, SCHEDULE, weights)
        assert torch.equal(seen["before"][1:], seen["reader"][:-1])
        assert torch.equal(seen["before"][0], stack.start["reader"])
        for place, seed in enumerate((0, 4, 9)):
            stack, data, optimiser = experiment((seed,), kind, **changes)
            alone_seen, alone = train(stack, data.batch, optimiser, SCHEDULE, weights)
            for name in alone:
                torch.testing.assert_close(together[name][place], alone[name][0])
            torch.testing.assert_close(seen["reader"][:, place], alone_seen["reader"][:, 0])
            torch.testing.assert_close(seen["train_loss"][1:, place], alone_seen["train_loss"][1:, 0])

    def test_the_loop_is_torchs_own_training(self):
        stack, data, optimiser = experiment((2,), "adamw")
        _, found = train(stack, data.batch, optimiser, SCHEDULE, weights)
        module = toy(2)
        reference = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.1)
        for step in range(SCHEDULE.steps):
            x, y = (part[0] for part in data.batch(step))
            reference.zero_grad()
            functional.mse_loss(module(x), y).backward()
            reference.step()
        for name, value in module.named_parameters():
            torch.testing.assert_close(found[name][0], value.data)

    def test_a_transformers_seeds_together_are_seeds_alone(self):
        text = torch.randint(256, (20, 13), generator=generator(0))
        for arm in ARM_OF.values():
            modules = [SmallTransformer(arm, seed=seed, size=SIZE).double() for seed in (0, 3)]
            data = NextByte((0, 3), text, text, batch=3)
            losses, gradients = Stack(modules, next_byte_loss).gradients(
                Stack(modules, next_byte_loss).start, data.batch(0)
            )
            for place, module in enumerate(modules):
                x, y = (part[place] for part in data.batch(0))
                loss = next_byte_loss(module(x), y)
                loss.backward()
                torch.testing.assert_close(losses[place], loss.detach())
                for name, value in module.named_parameters():
                    torch.testing.assert_close(gradients[name][place], value.grad)


class Kept:
    """A checkpoint in memory that interrupts the training after so many saves."""

    def __init__(self, saves: int) -> None:
        self.saves, self.state = saves, None

    def load(self) -> dict[str, Tensor] | None:
        return self.state

    def save(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name: value.clone() for name, value in state.items()}
        self.saves -= 1
        if self.saves == 0:
            raise KeyboardInterrupt


class TestResume:
    @pytest.mark.parametrize("saves", [1, 2, 3])
    def test_a_resumed_training_gives_the_same_numbers(self, saves: int):
        stack, data, optimiser = experiment((0, 1), "muon")
        whole_seen, whole = train(stack, data.batch, optimiser, SCHEDULE, weights)
        kept, done = Kept(saves), []
        with pytest.raises(KeyboardInterrupt):
            train(stack, data.batch, optimiser, SCHEDULE, weights, checkpoint=kept)
        stack, data, optimiser = experiment((0, 1), "muon")
        seen, found = train(stack, data.batch, optimiser, SCHEDULE, weights, checkpoint=kept, progress=done.append)
        for name in whole:
            assert torch.equal(found[name], whole[name])
        for name in whole_seen:
            torch.testing.assert_close(seen[name], whole_seen[name], rtol=0, atol=0, equal_nan=True)
        assert sum(done) == SCHEDULE.steps

    def test_training_leaves_the_start_as_it_was(self):
        stack, data, optimiser = experiment((0,), "adamw")
        before = stack.start["reader"].clone()
        train(stack, data.batch, optimiser, SCHEDULE, weights)
        assert torch.equal(stack.start["reader"], before)


class TestPlan:
    def test_at_least_twenty_snapshots_with_both_ends(self):
        steps = snapshot_steps(3000)
        assert len(steps) > 20
        assert (steps[0], steps[-1]) == (0, 3000)
        assert {7, 15, 31, 62, 125, 2875} <= set(steps)
        assert snapshot_steps(4) == (0, 1, 2, 3, 4)

    def test_the_rate_rises_and_falls_to_a_tenth(self):
        schedule = Schedule(100, (0, 100), warmup=0.1)
        rates = [schedule.factor(step) for step in range(100)]
        assert rates[0] == pytest.approx(0.1)
        assert rates[9:11] == pytest.approx([1.0, 1.0])
        assert rates[55] == pytest.approx(0.55)
        assert rates[-1] == pytest.approx(0.1, abs=1e-3)
        assert Schedule(10, (0, 10)).factor(9) == 1.0


class TestTransformer:
    def test_later_bytes_change_nothing_before_them(self):
        for arm in ARM_OF.values():
            module = SmallTransformer(arm, seed=0, size=SIZE).double()
            tokens = torch.randint(256, (2, 10), generator=generator(1))
            changed = tokens.clone()
            changed[:, 6:] = 0
            before, after = module(tokens), module(changed)
            torch.testing.assert_close(before[:, :6], after[:, :6])
            torch.testing.assert_close(before[:, :6], module(tokens[:, :6]))  # nor does how many there are
            assert not torch.allclose(before[:, 6:], after[:, 6:])

    def test_against_the_llama_of_transformers(self):
        from transformers import LlamaConfig, LlamaForCausalLM

        ours = SmallTransformer(ARM_OF["full"], seed=0, size=SIZE)
        config = LlamaConfig(
            vocab_size=256, hidden_size=16, intermediate_size=SIZE.hidden, num_hidden_layers=2, num_attention_heads=2,
            rms_norm_eps=1e-12, rope_theta=10_000.0, tie_word_embeddings=False, attn_implementation="eager",
        )  # fmt: skip
        theirs = LlamaForCausalLM(config).eval()
        names = {"attention_gain": "input_layernorm", "mlp_gain": "post_attention_layernorm"}
        names |= {name: f"self_attn.{name}_proj" for name in "qkvo"}
        names |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
        state = {
            f"model.layers.{layer}.{name}.weight": getattr(ours, own)[layer].detach()
            for own, name in names.items()
            for layer in range(2)
        }
        state |= {"model.embed_tokens.weight": ours.embed.detach(), "lm_head.weight": ours.readout.detach()}
        theirs.load_state_dict(state | {"model.norm.weight": ours.final_gain.detach()})
        tokens = torch.randint(256, (2, 10), generator=generator(1))
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits)

    @pytest.mark.parametrize("changed", [{"mlp": "gelu"}, {"norm": "layer"}])
    def test_a_part_that_is_not_there_is_refused(self, changed: dict[str, str]):
        with pytest.raises(InputError, match="of an arm must be one of"):
            Arm("wrong", **changed)

    def test_the_arms_change_what_they_say(self):
        start = {name: SmallTransformer(arm, seed=0, size=SIZE) for name, arm in ARM_OF.items()}
        tokens = torch.randint(256, (2, 10), generator=generator(1))
        outputs = [module(tokens) for module in start.values()]
        assert all(torch.equal(module.q, start["full"].q) for module in start.values())
        assert not any(torch.allclose(outputs[0], other) for other in outputs[1:])
        assert "attention_gain" not in dict(start["no_norm"].named_parameters())

    def test_readers_act_through_the_gain_before_them(self):
        module = SmallTransformer(ARM_OF["full"], seed=0, size=SIZE)
        with torch.no_grad():
            module.attention_gain.copy_(torch.rand(2, 16))
        parameters = dict(module.named_parameters())
        torch.testing.assert_close(module.acting(parameters, "q")[1], module.q[1] * module.attention_gain[1])
        torch.testing.assert_close(module.acting(parameters, "gate"), module.gate)
        assert module.acting(parameters, "o") is module.o
