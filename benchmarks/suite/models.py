"""Which models are timed: rows of the zoo, some of them at a larger batch."""

from __future__ import annotations

from dataclasses import dataclass

from mlc.errors import UsageError, did_you_mean

_ONE = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "squeezenet",
    "densenet121",
    "inception_v1",
    "vit_tiny",
    "transformer_encoder",
    "encoder_768",
    "lstm_classifier",
    "mlp",
)
_EIGHT = ("resnet50", "transformer_encoder")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to time: a row of `benchmarks.zoo.MODELS` at a batch size."""

    model: str
    batch: int = 1

    @property
    def name(self) -> str:
        """The name on the command line and of files: `resnet50`, `resnet50@8`."""
        return self.model if self.batch == 1 else f"{self.model}@{self.batch}"

    @property
    def factory(self) -> str:
        """What `mlc export` takes."""
        return f"benchmarks.zoo:{self.model}"

    def inputs(self) -> tuple[str, ...]:
        """Return the `--input` options of `mlc export`, the first dimension set to the batch."""
        from benchmarks.zoo import MODELS

        return tuple(at_batch(text, self.batch) for text in MODELS[self.model].inputs)


SUBJECTS = {
    subject.name: subject
    for subject in (
        *(Subject(model=model) for model in _ONE),
        *(Subject(model=model, batch=8) for model in _EIGHT),
    )
}


def at_batch(text: str, batch: int) -> str:
    """Return an input option (`ids:int64:1,32`) with another first dimension."""
    head, colon, shape = text.rpartition(":")
    return head + colon + ",".join([str(batch), *shape.split(",")[1:]])


def chosen(text: str) -> list[Subject]:
    """Return the subjects named in a list with commas; nothing means all.

    Raises:
        UsageError: there is no such model.
    """
    names = text.split(",") if text else list(SUBJECTS)
    for name in names:
        if name not in SUBJECTS:
            raise UsageError(f"the suite has no model {name!r}", did_you_mean(name, SUBJECTS))
    return [SUBJECTS[name] for name in names]
