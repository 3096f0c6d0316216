"""A model in memory as the choice of a run's model: known by its weights, not by a name that loads it.

Nothing large is imported before there is a model, so that options and their `--help` answer at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from probe.errors import InputError

if TYPE_CHECKING:
    from probe.model.protocol import LanguageModel


@dataclass(frozen=True)
class InMemory:
    """A model that was passed as an object: two are equal if their weights are.

    It is what an analysis's `Config` keeps of such a model, and `config.json` of the `Config`. Read from that file it
    is the record of a model that is not here.

    Attributes:
        name: Name of the model, for reports.
        weights: Sha256 of its weights.
    """

    name: str = field(compare=False)
    weights: str

    @classmethod
    def of(cls, given: object) -> InMemory:
        """Wrap a model, and read every weight for its hash.

        Args:
            given: A Hugging Face causal LM, a TransformerLens `TransformerBridge`, or any `LanguageModel`.

        Returns:
            The choice of this model.

        Raises:
            InputError: If it is none of these, or has no residual stream.
        """
        from probe.model.huggingface import HuggingFaceModel
        from probe.model.load import load_model

        wrapped: Any = load_model(given)  # type: ignore[arg-type]  # which refuses other objects
        if isinstance(wrapped, HuggingFaceModel):
            wrapped = wrapped.laid_out(wrapped.layout)  # its weights may have changed since they were hashed
        made = cls(wrapped.name, wrapped.weight_hash)
        object.__setattr__(made, "_loaded", wrapped)
        return made

    @property
    def is_here(self) -> bool:
        """True if the model is in the memory of this process, False for what is read from a file."""
        return "_loaded" in vars(self)

    @property
    def loaded(self) -> LanguageModel:
        """The model.

        Raises:
            InputError: If it is not in the memory of this process.
        """
        if not self.is_here:
            raise InputError(
                f"a run of a model in memory goes on with that model, and {self.name} (weights {self.weights[:12]}) is "
                "not here, nor named by a path: pass it again, as Config(model=...)"
            )
        found: LanguageModel = vars(self)["_loaded"]
        return found

    @property
    def has_controls(self) -> bool:
        """True if fresh and permuted weights can be made of it: it is a Hugging Face model."""
        return hasattr(self.loaded.module, "config")

    def variant(self, random_init: int | None, shuffled_weights: int | None) -> LanguageModel:
        """Give the model, or make a control of it in memory.

        Args:
            random_init: Seed of freshly initialised weights.
            shuffled_weights: Seed under which the entries of its weights are permuted, in a copy.

        Returns:
            The model itself where no seed is given.
        """
        from probe.model.load import load_model

        return load_model(self.loaded, random_init=random_init, shuffled_weights=shuffled_weights)

    def __str__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: object) -> InMemory:
        return self

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"a model in memory stays in its process, and {self.name} is to be sent to another: save it with "
            "save_pretrained(DIRECTORY) and pass model=DIRECTORY"
        )
