"""A chain of samplers such as `topk+topp`: each truncates what the one before it kept, and the last one draws.

A chain has one temperature, which is applied first. It calls only public methods of its samplers; if a package offers
the same chain as one sampler with a kernel of its own, the registry takes that instead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import create_model
from pydantic.fields import FieldInfo

from neurogen.contract.parameters import RowParams, SamplerParams, build_params, has_bounds_between, option_of
from neurogen.contract.sampler import API_VERSION, Sampler, State
from neurogen.errors import ParameterError

if TYPE_CHECKING:
    from torch import Tensor

    from neurogen.contract.stages import SamplerStage

__all__ = ["Chain", "chain_class"]

SHARED = "temperature"
"""The parameter that all samplers of a chain have in common."""


class Chain(Sampler):
    """Samplers one after another; `chain_class` makes a subclass of particular ones.

    Attributes:
        links: the samplers' classes, in order.
        names: for each, its parameter -> the chain's parameter.
    """

    api_version = API_VERSION
    links: ClassVar[tuple[type[Sampler], ...]] = ()
    names: ClassVar[tuple[dict[str, str], ...]] = ()

    def __init__(self, /, **params: Any) -> None:
        super().__init__(**params)
        values = self.params.model_dump()
        self._samplers = [
            link(**{own: values[shared] for own, shared in names.items()})  # checked by its own schema too
            for link, names in zip(self.links, self.names, strict=True)
        ]

    def parts(self) -> Iterator[tuple[Sampler, dict[str, str]]]:
        """The samplers in order, each with its parameters' names in the chain."""
        return zip(self._samplers, self.names, strict=True)

    def stages(
        self, /, logits: Tensor, *, seed: int = 0, position: int = 0, state: State | None = None, **params: Any
    ) -> list[SamplerStage]:
        """The temperature once, then each sampler on what the last one left."""
        import torch

        from neurogen.contract.stages import named, tempered, truncated

        values = {**self.params.model_dump(), **params}
        temperature = values.get(SHARED, 1.0)
        stages, left = tempered(logits, temperature), logits
        *links, (last, names) = self.parts()
        for link, shared in links:
            own = {name: values[of_chain] for name, of_chain in shared.items()}
            left = left.masked_fill(~link.support(left, **own), -torch.inf)
            stages.append(truncated(named(link.name, own), left, temperature))
        own = {name: values[of_chain] for name, of_chain in names.items()}
        rest = last.stages(left, seed=seed, position=position, state=state, **own)
        return [*stages, *(stage for stage in rest if stage.kind != "temperature")]

    def new_state(self, batch: int) -> State:
        return self._samplers[-1].new_state(batch)

    def _sample(self, logits: Tensor, seed: Tensor, position: Tensor, params: RowParams, *state: State) -> Tensor:
        last, rows = self._samplers[-1], self._rows_of(len(self.links) - 1, params)
        return last._sample(self._truncated(logits, params), seed, position, rows, *state)

    def _probs(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        rows = self._rows_of(len(self.links) - 1, params)
        return self._samplers[-1]._probs(self._truncated(logits, params), rows, *state)

    def _support(self, logits: Tensor, params: RowParams, *state: State) -> Tensor:
        rows = self._rows_of(len(self.links) - 1, params)
        return self._samplers[-1]._support(self._truncated(logits, params), rows, *state)

    def _truncated(self, logits: Tensor, params: RowParams) -> Tensor:
        """The logits with -inf for what all links but the last remove; rows with NaN or +inf keep those."""
        import torch

        for index, sampler in enumerate(self._samplers[:-1]):
            kept = sampler._support(logits, self._rows_of(index, params))
            logits = logits.masked_fill(~kept & (logits < torch.inf), -torch.inf)
        return logits

    def _rows_of(self, index: int, params: RowParams) -> RowParams:
        return RowParams(**{own: getattr(params, shared) for own, shared in self.names[index].items()})


def chain_class(classes: Sequence[type[Sampler]]) -> type[Chain]:
    """The class of a chain.

    Its parameters are those of its samplers. `temperature` is one for all, by default that of the last which has one;
    others that share a name are called `SAMPLER_NAME` each.

    Args:
        classes: at least two samplers, in order.

    Raises:
        ParameterError: a sampler occurs twice, or one but the last does more than remove tokens.
    """
    name = "+".join(cls.name for cls in classes)
    for position, cls in enumerate(classes):
        if cls in classes[:position]:
            raise ParameterError(
                f"The chain {name!r} has {cls.name!r} twice; each sampler may stand in it once.", "name"
            )
        if cls is not classes[-1] and not cls.truncates:
            raise ParameterError(
                f"In the chain {name!r} the sampler {cls.name!r} cannot stand before another: it does more than remove "
                f"tokens. Put it last, or leave it out.",
                "name",
            )
    names, fields = _merged(classes)
    return type(
        "Chain",
        (Chain,),
        {
            "__doc__": " Then: ".join(_sentence(cls) for cls in classes),
            "name": name,
            "links": tuple(classes),
            "names": names,
            "deterministic": classes[-1].deterministic,
            "stateful": classes[-1].stateful,
            "dtypes": frozenset.intersection(*(frozenset(cls.dtypes) for cls in classes)),
            "backends": {},
            "truncates": classes[-1].truncates,
            "Params": _schema(classes, names, fields),
        },
    )


def _schema(
    classes: Sequence[type[Sampler]], names: Sequence[Mapping[str, str]], fields: Mapping[str, Any]
) -> type[SamplerParams]:
    """The chain's parameters, with the checks that its samplers make between their parameters."""
    plain = create_model("Params", __base__=SamplerParams, **fields)
    bound = [(cls, own) for cls, own in zip(classes, names, strict=True) if has_bounds_between(cls.Params)]
    if not bound:
        return plain

    def check_together(self: SamplerParams) -> None:
        for cls, own in bound:
            try:
                build_params(cls.name, cls.Params, {name: getattr(self, shared) for name, shared in own.items()})
            except ParameterError as error:
                raise ParameterError(str(error), own.get(error.parameter or "")) from None

    return type("Params", (plain,), {"check_together": check_together, "__module__": __name__})


def _sentence(cls: type[Sampler]) -> str:
    return " ".join((cls.__doc__ or cls.name).strip().split("\n\n")[0].split())


def _merged(classes: Sequence[type[Sampler]]) -> tuple[tuple[dict[str, str], ...], dict[str, Any]]:
    """For each sampler its parameter -> the chain's, and the chain's fields."""
    everything = [(cls, name, field) for cls in classes for name, field in cls.Params.model_fields.items()]
    counts = {name: sum(other == name for _, other, _ in everything) for _, name, _ in everything}
    options = [option_of(name, field) for _, name, field in everything]
    names: dict[type[Sampler], dict[str, str]] = {cls: {} for cls in classes}
    fields: dict[str, Any] = {}
    for cls, own, field in everything:
        unique = own == SHARED or counts[own] == 1
        shared = own if unique else f"{cls.name.replace('-', '_')}_{own}"
        names[cls][own] = shared
        taken = own != SHARED and options.count(option_of(own, field)) > 1
        fields[shared] = (field.annotation, _renamed(field) if taken else field)
    return tuple(names[cls] for cls in classes), fields


def _renamed(field: FieldInfo) -> FieldInfo:
    """The field with an option that follows from its name."""
    other = copy.copy(field)
    other.json_schema_extra = None
    return other


def parameters_of(cls: type[Sampler], index: int) -> Mapping[str, str]:
    """The parameters of one link: its own name -> that of the whole sampler."""
    if issubclass(cls, Chain):
        return cls.names[index]
    return {name: name for name in cls.Params.model_fields}


def given_in(cls: type[Sampler], links: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a spec gives for the parameters of a whole sampler.

    Args:
        cls: the sampler, or the chain.
        links: for each link of the spec, its parameters.

    Raises:
        ParameterError: a link has no such parameter, or two links give different values for one.
    """
    values: dict[str, Any] = {}
    for link, own, value in _pairs(links):
        name = parameters_of(cls, link).get(own, own)
        if name in values and values[name] != value:
            raise ParameterError(
                f"{cls.name}: {name} is given as {values[name]!r} and as {value!r}. A chain has one {name}, applied "
                "first: give it once.",
                name,
            )
        values[name] = value
    return values


def _pairs(links: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, str, Any]]:
    return ((index, name, value) for index, link in enumerate(links) for name, value in link.items())
