"""Models in memory in every analysis: the same numbers as by name, known again by their weights alone."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import probe
from probe.analyses import communities, continuity, dynamics, lens, tokenwise
from probe.analyses.communities.stages import Communities
from probe.analyses.continuity.stages import Continuity
from probe.analyses.dynamics.stages import Dynamics
from probe.analyses.lens.stages import Lens
from probe.analyses.tokenwise.stages import LayerUpdates
from probe.analysis import Analysis, Schema, Stage, Subject, Task, TextConfig, Variable
from probe.analysis.config import ModelConfig
from probe.analysis.contract import configured
from probe.model import LanguageModel, load_model
from probe.model.in_memory import InMemory
from probe.runs import Run
from tests.plant.own import Own
from tests.plant.refusing import refused
from tests.plant.saved import saved, write_text
from tests.plant.tiny import tiny_model, tiny_module, tiny_tokenizer, tiny_tokens

TEXT = {"windows": 4, "window_length": 16, "layers": [1, 2]}
SMALL: dict[str, tuple[type[Analysis[Any]], type[Any], dict[str, Any]]] = {
    "tokenwise": (
        LayerUpdates,
        tokenwise.Config,
        TEXT
        | {"classes": ("mean", "linear"), "replaced": ("mean", "linear"), "replacement": "one", "sweep": False}
        | {"fit_windows": 12, "positions_per_window": 2, "draws": 1, "floor": False},
    ),
    "dynamics": (
        Dynamics,
        dynamics.Config,
        TEXT
        | {"skip_first": 4, "control_windows": 1, "init_seeds": 1, "alone": False, "interventions": False}
        | {"eigenvector_windows": 0, "mean": False, "perturb": False, "kreiss_layers": 0},
    ),
    "communities": (
        Communities,
        communities.Config,
        TEXT
        | {"skip_first": 4, "graph_windows": 4, "graph_positions": 8, "neighbours": 6, "seeds": 3, "profile_seeds": 3}
        | {"profile_draws": 1, "null_graphs": 1, "graph_resamples": 0, "permutations": 5, "basis_draws": 0}
        | {"init_seeds": 1, "ablation_layers": 0, "drawn_layers": 0},
    ),
    "continuity": (
        Continuity,
        continuity.Config,
        {"layers": "0,1", "init_seeds": 1, "permutations": 5, "composites": False, "folded": False},
    ),
    "lens": (
        Lens,
        lens.Config,
        {"windows": 2, "window_length": 20, "layers": [1, 2], "skip_first": 4, "fit_windows": 2, "control_windows": 2}
        | {"init_seeds": 1, "shuffled_seeds": 1, "blocks_seeds": 1, "affine": False, "steered": 1},
    ),
}


CONTROLS: dict[str, tuple[dict[str, str], ...]] = {
    "tokenwise": (),
    "dynamics": ({"variant": "init-0"}, {"variant": "shuffled-0"}),
    "communities": ({"view": "init-0"},),
    "continuity": ({"variant": "init-0"}, {"variant": "shuffled-0"}),
    "lens": ({"variant": "init-0"}, {"variant": "shuffled-0"}, {"variant": "blocks-0"}),
}
"""Labels of the first stage's tasks that make them tasks of a control."""


def bare(name: str) -> Analysis[Any]:
    """The analysis without claims and figures, which are read from the Dataset alone."""
    kind = SMALL[name][0]
    return type("Bare", (kind,), {"claims": lambda *_: [], "figures": lambda *_: []})()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("in-memory")


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    return write_text(folder / "text.txt")


@pytest.fixture(scope="module")
def make(text: Path) -> Callable[..., Any]:
    def make(name: str, model: object, **changes: object) -> Any:
        _, kind, options = SMALL[name]
        read = {"text": text} if issubclass(kind, TextConfig) else {}
        return kind(model=model, **(options | read | changes))

    return make


def llama() -> LanguageModel:
    return load_model(tiny_module("llama"), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("name", SMALL)
def test_tasks_find_the_same_in_a_model_in_memory_as_in_its_directory(
    name: str, folder: Path, make: Callable[..., Any]
) -> None:
    analysis = SMALL[name][0]()
    found: list[list[Any]] = []
    for model in (llama(), saved(folder, "llama")):
        subject = analysis.subject(make(name, model))
        first = analysis.stages(subject)[0]
        task = first.tasks[0]
        tasks = [replace(task, labels={**task.labels, **other}) for other in ({}, *CONTROLS[name])]
        pieces = [first.measure(subject, task, Run(folder)) for task in tasks]
        found.append([np.asarray(array) for piece in pieces for array in piece.values()])
        assert subject.config.dtype == "float32"
    assert len(found[0]) >= 2
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_whole_run_of_a_model_in_memory_is_that_of_its_directory(folder: Path, make: Callable[..., Any]) -> None:
    analysis = bare("continuity")
    by_name = analysis.run(make("continuity", saved(folder, "llama")), out=folder / "named", quiet=True).data
    given = analysis.run(make("continuity", tiny_module("llama")), out=folder / "given", quiet=True).data
    for variable in by_name.data_vars:
        np.testing.assert_array_equal(given[variable].values, by_name[variable].values, err_msg=str(variable))
    assert given.attrs["model"] == "LlamaForCausalLM"
    assert given.attrs["description"] == "given as an object, in memory"
    again = analysis.read(folder / "given")  # as another process does, without the model
    assert again.title == "Continuity of the weights of LlamaForCausalLM"
    np.testing.assert_array_equal(again.data["gap"].values, given["gap"].values)


def weigh(subject: Subject[ModelConfig], task: Task, run: Run) -> dict[str, float]:
    return {"norm": float(subject.variant(task["variant"]).projections(0)["q"].detach().norm())}


class Weigh(Analysis[ModelConfig]):
    """One number of the model and of each control."""

    name = "weigh"
    config = ModelConfig
    schema = Schema({"norm": Variable("variant")})
    variants = ("model", "init-0", "shuffled-0")

    def stages(self, subject: Any) -> list[Stage]:
        return [Stage("weigh", weigh, [Task("weigh", {"variant": name}) for name in self.variants], "weigh")]

    def coordinates(self, subject: Any) -> dict[str, Any]:
        return {"variant": list(self.variants)}


def weighed(model: object, out: Path | None) -> Any:
    config = model if isinstance(model, ModelConfig) else ModelConfig(model=model)  # type: ignore[arg-type]
    return Weigh().run(config, out=out, quiet=True)


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    weighed(tiny_module("llama"), folder / "done")
    return folder / "done"


class TestResume:
    def test_the_record_says_that_the_model_was_in_memory(self, done: Path) -> None:
        record = Run(done).record
        digest = load_model(tiny_module("llama")).weight_hash
        assert record["config"]["model"] == {"name": "LlamaForCausalLM", "weights": digest}
        assert record["fingerprint"]["weights"] == digest
        assert record["provenance"]["command"].splitlines()[-2:] == [
            f"# model: LlamaForCausalLM, in memory, sha256 of its weights {digest}",
            f"run(ModelConfig(model=model), out=Path({str(done)!r}))",
        ]
        page = Weigh().read(done).write_report().read_text(encoding="utf-8")
        assert digest in page
        assert "Weigh LlamaForCausalLM" in page

    def test_the_same_weights_go_on_whatever_object_and_name_they_have(self, done: Path) -> None:
        other = tiny_module("llama")
        other.config.name_or_path = "somewhere/else"
        before = {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
        assert len(before) == 3
        data = weighed(other, done).data
        assert before == {path: path.stat().st_mtime_ns for path in done.rglob("*.safetensors")}
        own, fresh, shuffled = data["norm"].values
        assert own == pytest.approx(shuffled, abs=1e-4)
        assert own != pytest.approx(fresh, rel=0.1)

    @pytest.mark.guards(
        "a run of a model in memory goes on with the same weights",
        when="a run begins",
        says="a run directory belongs to one configuration, but in … …",
    )
    def test_other_weights_are_refused(self, done: Path) -> None:
        refused(lambda: weighed(tiny_module("llama", seed=1), done), "model.weights was", "pass fresh=True")

    def test_weights_that_changed_since_the_model_was_wrapped_are_other_weights(self, done: Path) -> None:
        model = load_model(tiny_module("llama"))
        assert ModelConfig(model=model).model.weights == model.weight_hash  # type: ignore[union-attr]
        with torch.no_grad():
            next(model.module.parameters()).add_(1.0)
        refused(lambda: weighed(model, done), "model.weights was")

    def test_what_names_no_model_that_can_be_loaded_says_so(self, done: Path, folder: Path) -> None:
        named = ModelConfig(model=str(saved(folder, "llama")))
        refused(lambda: weighed(named, done), "of a model in memory, LlamaForCausalLM", "Config(model=...)")
        read = configured(ModelConfig, json.loads((done / "config.json").read_text())["config"])
        assert read == ModelConfig(model=tiny_module("llama"))
        refused(lambda: weighed(read, done), "LlamaForCausalLM", "pass it again")

    def test_a_directory_of_its_own_is_named_by_the_model_and_its_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for seed in (0, 1, 0):
            weighed(tiny_module("llama", seed=seed), None)
        assert len(list(tmp_path.glob("runs/weigh/LlamaForCausalLM-*"))) == 2


class TestWhatIsTaken:
    def test_device_and_dtype_are_the_model_s_own(self) -> None:
        module = tiny_module("llama").to(torch.bfloat16)
        config = ModelConfig(model=module)
        assert (config.device, config.dtype) == ("cpu", "bfloat16")
        assert ModelConfig(model=module, dtype="bfloat16") == config
        assert replace(config, seed=1).dtype == "bfloat16"
        refused(lambda: ModelConfig(model=module, dtype="float64"), "has dtype bfloat16, got dtype='float64'")
        refused(lambda: ModelConfig(model=module, device="cuda"), "has device cpu, got device='cuda'")

    def test_what_only_a_name_has_is_refused(self) -> None:
        module = tiny_module("llama")
        refused(lambda: ModelConfig(model=module, revision="step1"), "revision=", "LlamaForCausalLM is in memory")
        refused(lambda: ModelConfig(model=module, trust_remote_code=True), "trust_remote_code=")
        refused(lambda: ModelConfig(model=module, random_init=0, shuffled_weights=0), "only one control")
        refused(lambda: TextConfig(model=module, dataset="sample"), "tokenizer", "load_model(module, tokenizer=...)")

    def test_it_is_wrapped_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = ModelConfig(model=tiny_module("llama"))
        monkeypatch.setattr("probe.model.load._built", lambda *_: pytest.fail("wrapped again"))
        for other in (replace(config, seed=1), copy.deepcopy(config)):
            assert other.model is config.model
        assert Subject(config).model is config.model.loaded  # type: ignore[union-attr]

    def test_a_directory_may_be_a_path(self, folder: Path) -> None:
        assert ModelConfig(model=saved(folder, "llama")).model == str(saved(folder, "llama"))

    def test_to_another_process_it_is_not_sent(self) -> None:
        subject = Subject(ModelConfig(model=tiny_module("llama")))
        refused(lambda: pickle.dumps(subject), "stays in its process", "save_pretrained(DIRECTORY)")

    @pytest.mark.parametrize("control", [{"random_init": 3}, {"shuffled_weights": 3}])
    def test_controls_are_made_of_the_module_as_of_a_directory(self, folder: Path, control: dict[str, int]) -> None:
        module = tiny_module("llama")
        before = load_model(module).weight_hash
        made = Subject(ModelConfig(model=module, **control)).model  # type: ignore[arg-type]
        assert made.weight_hash == load_model(saved(folder, "llama"), **control).weight_hash  # type: ignore[arg-type]
        assert load_model(module).weight_hash == before
        assert made.name == "LlamaForCausalLM"

    def test_of_a_model_of_one_s_own_there_are_no_controls(self, tmp_path: Path, make: Callable[..., Any]) -> None:
        own = Own(tiny_model("llama", with_tokenizer=True))
        config = make("continuity", own, init_seeds=0, shuffled_seeds=0)
        assert Subject(config).model is own
        data = bare("continuity").run(config, out=tmp_path / "run", quiet=True).data
        assert data["variant"].values.tolist() == ["model", "trimmed"]
        assert data.attrs["model"] == own.name
        refused(lambda: make("continuity", own), "init_seeds=1", "pass init_seeds=0, shuffled_seeds=0")
        refused(lambda: ModelConfig(model=own, random_init=1), "random_init=None")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
@pytest.mark.parametrize("kind", ["bridge", "adapters", "compiled"])
def test_a_wrapped_model_has_weights_of_its_own_and_plain_controls(kind: str) -> None:
    module: Any = tiny_module("llama")
    if kind == "bridge":
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        module = build_bridge_from_module(module, "LlamaForCausalLM", hf_config=module.config, device="cpu")
    elif kind == "adapters":
        module = get_peft_model(module, LoraConfig(r=4, target_modules=["o_proj"], init_lora_weights=False)).eval()
    else:
        module = torch.compile(module, backend="eager")
    plain = load_model(tiny_module("llama"))
    given = InMemory.of(module)
    tokens = tiny_tokens()
    states = given.loaded.final_states(tokens)
    assert torch.allclose(states, plain.final_states(tokens), atol=1e-5) != (kind == "adapters")
    twins = [probe.weights.fresh_twin(probe.weights.weights_of(model), 3) for model in (given.loaded, plain)]
    assert torch.equal(*(twin.matrix(1, "q") for twin in twins))
    fresh = [given.variant(3, None), load_model(plain, random_init=3)]
    assert torch.equal(*(model.final_states(tokens) for model in fresh))


def test_the_default_model_is_named_once() -> None:
    import inspect

    from probe.model.names import DEFAULT_MODEL
    from probe.model.sources import PACKAGES

    assert inspect.signature(load_model).parameters["name_or_object"].default is DEFAULT_MODEL
    assert ModelConfig().model is DEFAULT_MODEL
    assert list(PACKAGES) == [DEFAULT_MODEL]
    found = [
        path
        for path in Path(probe.__file__).parent.rglob("*.py")
        if f'= "{DEFAULT_MODEL}"' in path.read_text(encoding="utf-8")
    ]
    assert [path.name for path in found] == ["names.py"]


def test_a_record_of_a_model_in_memory_equals_the_model_s_choice() -> None:
    made = InMemory.of(tiny_module("llama"))
    assert made == InMemory("another name", made.weights)
    assert made != InMemory(made.name, "0" * 64)
    assert not InMemory("name", made.weights).is_here
