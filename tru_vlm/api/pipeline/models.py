"""The models of this server as requests meet them: by name, by alias, each with its workers.  It runs no request.

Nothing is shared between models but what does not depend on them: files and sampled frames.  A model's workers, its
queue, its caches on the device and what is known of them (:mod:`tru_vlm.api.workers.affinity`) are its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.pipeline.places import Places
from tru_vlm.api.pipeline.planning import Planner
from tru_vlm.api.workers.pool import WorkerPool
from tru_vlm.api.workers.rendezvous import weighted_choice
from tru_vlm.errors import NotFoundError
from tru_vlm.intake.spool import SpooledFile
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.settings import Settings
from tru_vlm.types import MediaPart

_MAX_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Model:
    """One model.

    Attributes:
        name: under which it is asked for; for answers to an alias, the variant.
        settings: its own.
        profile: what it accepts.
        planner: plans requests for it.
        workers: answer them.
        places: of requests that are meant for it and have not ended.
    """

    name: str
    settings: Settings
    profile: ModelProfile
    planner: Planner
    workers: WorkerPool
    places: Places


class Models:
    """All models, and the aliases that stand for them.

    Args:
        models: in order.
        aliases: of each, the models' weights.
        default: the model or alias of requests that name none.
    """

    def __init__(self, models: Sequence[Model], aliases: Mapping[str, Mapping[str, float]], default: str) -> None:
        self._models = {model.name: model for model in models}
        self.aliases = aliases
        self.default = default

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for: models, then aliases."""
        return (*self._models, *self.aliases)

    def name_of(self, asked: str | None) -> str:
        """The model or alias that a request asks for, by name or by saying nothing.

        Raises:
            NotFoundError: there is none of this name.
        """
        if asked is None:
            return self.default
        if asked not in self._models and asked not in self.aliases:
            existing = " and ".join(filter(None, [", ".join(map(repr, self.names[:-1])), repr(self.names[-1])]))
            text = f"The model {asked[:_MAX_SHOWN_CHARACTERS]!r} does not exist; this server has {existing}."
            raise NotFoundError(text, param="model", code="model_not_found")
        return asked

    def variants_of(self, name: str) -> tuple[Model, ...]:
        """The models that may answer for ``name``: itself, or the alias's."""
        return tuple(self._models[variant] for variant in self.aliases.get(name, (name,)))

    def at_once(self, name: str, routing_key: str | None) -> Model | None:
        """The model for a request, if its media need not be known for that."""
        weights = self.aliases.get(name)
        if weights is None:
            return self._models[name]
        if routing_key is not None:
            return self._models[weighted_choice(routing_key, weights, salt=name)]
        return self._models[next(iter(weights))] if len(weights) == 1 else None

    def by_content(self, name: str, request: InferenceRequest, files: Sequence[SpooledFile]) -> Model:
        """The model for a request that has no key: another question on the same video has the same one."""
        return self._of_content(name, _content_key(request, files))

    def of_video(self, name: str, sha256: str) -> Model:
        """The model of a question without a key on one video, by the content's hash."""
        return self.at_once(name, None) or self._of_content(name, sha256)

    def _of_content(self, name: str, key: str) -> Model:
        return self._models[weighted_choice(key, self.aliases[name], salt=name)]


def _content_key(request: InferenceRequest, files: Sequence[SpooledFile]) -> str:
    """What stays the same over the turns of a conversation: its first video or image, else how it begins."""
    if files:
        return files[0].sha256
    words: list[str] = []
    for message in request.messages:
        words += [part.text for part in message.content if not isinstance(part, MediaPart)]
        if message.role == "user":
            break
    return "\n".join(words)
