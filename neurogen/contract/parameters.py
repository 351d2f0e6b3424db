"""Parameters of a sampler: declared once as a pydantic class, from which come checks, messages and options.

A sampler's `Params` is a subclass of `SamplerParams` whose fields are made with `Param`: typed (int or float, also bool
and str), bounded, documented. Nothing here knows a particular sampler.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from neurogen.errors import ParameterError

if TYPE_CHECKING:
    import torch

__all__ = ["Param", "RowParams", "SamplerParams", "build_params", "domain_of", "option_of", "row_params"]

RowParams = SimpleNamespace
"""Parameters as a kernel receives them: one attribute a parameter, int64 or float64 tensors [batch] on the logits'
device for int and float fields, plain values for bool and str fields."""

NUMBERS: tuple[type, ...] = (int, float)
BOUNDS = (("gt", "("), ("ge", "["), ("lt", ")"), ("le", "]"))
KINDS: dict[Any, str] = {int: "an integer", float: "a finite number", bool: "true or false", str: "a text"}
ALIKE = 0.6
"""The least similarity at which a name is suggested for another."""
INT64 = range(-(2**63), 2**63)


def Param(  # noqa: N802  (reads as a type in a class body, like pydantic's Field)
    default: Any,
    *,
    description: str,
    option: str | None = None,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """A parameter of a sampler.

    Args:
        default: the value when the user gives none; it must lie inside the bounds.
        description: one sentence for `--help`, with unit or meaning of special values.
        option: name of the command line option; by default `--` and the field's name with dashes.
        gt, ge, lt, le: bounds; values outside are refused with a ParameterError that states them.
    """
    return Field(
        default,
        description=description,
        gt=gt,
        ge=ge,
        lt=lt,
        le=le,
        validate_default=True,
        json_schema_extra={"option": option} if option else None,
    )


class SamplerParams(BaseModel):
    """Base class of every sampler's parameters: immutable, no unknown names, no NaN or infinity, no bool as number.

    Bounds between parameters are said by `check_together`, or by pydantic's own model validators.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name, value in values.items():
                field = cls.model_fields.get(name)
                if field is not None and field.annotation in NUMBERS and isinstance(value, bool):
                    raise ParameterError(f"{name} must be {domain_of(field)}, got {value!r}.", name)
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self.check_together()
        return self

    def check_together(self) -> None:
        """Refuse values that are valid by themselves and contradict each other; by default all are accepted.

        Raises:
            ParameterError: says which, in a sentence.
        """


def has_bounds_between(schema: type[SamplerParams]) -> bool:
    """Whether a schema restricts combinations of values, beside the values themselves."""
    validators = schema.__pydantic_decorators__.model_validators
    after = [name for name, one in validators.items() if one.info.mode == "after"]
    return schema.check_together is not SamplerParams.check_together or after != ["_check_together"]


def option_of(name: str, field: FieldInfo) -> str:
    """The command line option of a parameter, such as `--top-k`."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("option"):
        return str(extra["option"])
    return "--" + name.replace("_", "-")


def domain_of(field: FieldInfo) -> str:
    """What values a parameter may take, in words: "an integer >= 0", "a number in (0, 1]"."""
    kind = KINDS.get(field.annotation, f"a {getattr(field.annotation, '__name__', field.annotation)}")
    limits: dict[str, Any] = {}
    for item in field.metadata:
        for bound, _ in BOUNDS:
            if getattr(item, bound, None) is not None:
                limits[bound] = getattr(item, bound)
    lower = next(((b, limits[b]) for b in ("gt", "ge") if b in limits), None)
    upper = next(((b, limits[b]) for b in ("lt", "le") if b in limits), None)
    brackets = dict(BOUNDS)
    if lower and upper:
        kind = kind.replace("finite ", "")
        return f"{kind} in {brackets[lower[0]]}{lower[1]:g}, {upper[1]:g}{brackets[upper[0]]}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    one = lower or upper
    return f"{kind} {signs[one[0]]} {one[1]:g}" if one else kind


def build_params(sampler: str, schema: type[SamplerParams], values: Mapping[str, Any]) -> SamplerParams:
    """Check `values` against `schema`.

    Args:
        sampler: name of the sampler, for messages.
        schema: its parameters.
        values: what the user gave; what is missing takes its default.

    Raises:
        ParameterError: for the first unknown name or value outside its domain.
    """
    for name in values:
        if name not in schema.model_fields:
            raise ParameterError(unknown_parameter(sampler, schema, name), name)
    try:
        return schema(**{name: _plain(value) for name, value in values.items()})
    except ValidationError as error:
        raise _parameter_error(sampler, schema, error) from None
    except ParameterError as error:
        raise ParameterError(f"{sampler}: {error}", error.parameter) from None


def unknown_parameter(sampler: str, schema: type[SamplerParams], name: str) -> str:
    """The message for a parameter that a sampler does not have."""
    known = list(schema.model_fields)
    if not known:
        return f"{sampler} has no parameter {name!r}; it has none."
    near = nearest_parameter(schema, name)
    return f"{sampler} has no parameter {name!r}; it has: {', '.join(known)}." + (
        f" Did you mean {near!r}?" if near else ""
    )


def nearest_parameter(schema: type[SamplerParams], name: str) -> str | None:
    """The known parameter that is most similar to an unknown name; None if no name is similar.

    One that shares a word with the name comes first, such as `typical_p` for `p`, or `k`, whose option is --top-k, for
    `top_k`; then the most alike.
    """
    wanted = name.replace("-", "_").lower()

    def likeness(known: str, field: FieldInfo) -> float:
        spellings = {known, option_of(known, field).lstrip("-").replace("-", "_")}
        if wanted in spellings:
            return 2.0
        if any(_names_another(wanted, spelling) for spelling in spellings):
            return 0.0
        words = {word for spelling in spellings for word in spelling.split("_")}
        shared = len(words & set(wanted.split("_")))
        alike = max(difflib.SequenceMatcher(None, wanted, spelling).ratio() for spelling in spellings)
        return alike + (0.5 if shared else 0.0)

    scores = {known: likeness(known, field) for known, field in schema.model_fields.items()}
    best = max(scores, key=lambda known: scores[known], default="")
    return best if scores.get(best, 0.0) >= ALIKE else None


def _names_another(wanted: str, known: str) -> bool:
    """Whether two names differ in one letter only, as top_p and top_k do, and so mean different parameters."""
    one, other = wanted.split("_"), known.split("_")
    return one[:-1] == other[:-1] and len(one[-1]) == len(other[-1]) == 1 and one[-1] != other[-1]


def has_parameter(schema: type[SamplerParams], name: str) -> bool:
    """Whether a schema has a parameter of this name, or one whose option has it."""
    wanted = name.replace("-", "_").lower()
    fields = schema.model_fields.items()
    return any(wanted in (known, option_of(known, field).lstrip("-").replace("-", "_")) for known, field in fields)


def _parameter_error(sampler: str, schema: type[SamplerParams], error: ValidationError) -> ParameterError:
    first = error.errors()[0]
    if not first["loc"]:
        own = first.get("ctx", {}).get("error")  # what a validator of ours raised, which pydantic has wrapped
        if isinstance(own, ParameterError):
            return ParameterError(f"{sampler}: {own}", own.parameter)
        return ParameterError(f"{sampler}: {first['msg']}.")
    name = str(first["loc"][0])
    field = schema.model_fields[name]
    reason = (
        f" ({first['msg'].removeprefix('Value error, ')})"
        if first["type"] in ("value_error", "assertion_error")
        else ""
    )
    return ParameterError(f"{sampler}: {name} must be {domain_of(field)}, got {first['input']!r}{reason}.", name)


def _plain(value: Any) -> Any:
    """NumPy and torch scalars as Python numbers; anything else as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def row_params(
    sampler: str,
    params: SamplerParams,
    overrides: Mapping[str, Any],
    batch: int,
    device: torch.device,
) -> RowParams:
    """The parameters of every row, as kernels receive them.

    Args:
        sampler: name of the sampler, for messages.
        params: what the sampler was made with.
        overrides: parameters given for this call: a number for all rows, or a tensor [batch].
        batch: number of rows.
        device: where the logits are.

    Raises:
        ParameterError: unknown name; a tensor of another shape, dtype or device; a value outside its domain (for CUDA
            tensors values are not looked at, since that would wait for the device; kernels clamp them).
    """
    schema = type(params)
    for name in overrides:
        if name not in schema.model_fields:
            raise ParameterError(unknown_parameter(sampler, schema, name), name)
    values: dict[str, Any] = params.model_dump() | {name: _plain(value) for name, value in overrides.items()}
    tensors = {name: value for name, value in values.items() if getattr(value, "ndim", 0) > 0}
    for name, value in tensors.items():
        values[name] = _checked_tensor(sampler, name, schema.model_fields[name], value, batch, device)
    if tensors:
        _check_rows(sampler, params, values, [name for name in overrides if name not in tensors])
    elif overrides:
        values = build_params(sampler, schema, values).model_dump()
    fields = schema.model_fields.items()
    return RowParams(**{name: _row_value(field, values[name], batch, device) for name, field in fields})


def _check_rows(sampler: str, params: SamplerParams, values: Mapping[str, Any], plain: Sequence[str]) -> None:
    """Check what is given for all rows beside tensors, and where parameters depend on each other, row by row.

    Args:
        sampler: name of the sampler, for messages.
        params: what the sampler was made with.
        values: of every parameter; tensors [batch] where there is one a row.
        plain: which of them are given, and the same for all rows.
    """
    schema = type(params)
    if not has_bounds_between(schema):
        build_params(sampler, schema, params.model_dump() | {name: values[name] for name in plain})
        return
    columns = {name: value for name, value in values.items() if getattr(value, "ndim", 0) > 0}
    if any(column.device.type != "cpu" for column in columns.values()):  # looking at them would wait for the device
        for name in plain:
            _check_values(sampler, name, schema.model_fields[name], [values[name]])
        return
    lists = {name: column.tolist() for name, column in columns.items()}
    for row in range(min(map(len, lists.values()))):
        try:
            build_params(sampler, schema, {**values, **{name: column[row] for name, column in lists.items()}})
        except ParameterError as error:
            raise ParameterError(f"{str(error).removesuffix('.')} in row {row}.", error.parameter) from None


def _row_value(field: FieldInfo, value: Any, batch: int, device: torch.device) -> Any:
    """One parameter as kernels receive it: a tensor [batch], or a plain value where it is no number."""
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if field.annotation not in NUMBERS:
        return value
    if field.annotation is int:
        value = clamped(value)
    return torch.full((batch,), value, dtype=_tensor_dtype(field), device=device)


def is_whole(value: Any, domain: range = INT64) -> bool:
    """Whether a value is an integer in `domain`; True and False do not count as integers."""
    return isinstance(value, int) and not isinstance(value, bool) and value in domain


def clamped(value: int) -> int:
    """The nearest integer of 64 bits, which is larger than any vocabulary and any count."""
    return min(max(value, INT64[0]), INT64[-1])


def _tensor_dtype(field: FieldInfo) -> torch.dtype:
    import torch

    return torch.int64 if field.annotation is int else torch.float64


def _checked_tensor(
    sampler: str, name: str, field: FieldInfo, value: torch.Tensor, batch: int, device: torch.device
) -> torch.Tensor:
    import torch

    if field.annotation not in NUMBERS:
        raise ParameterError(f"{sampler}: {name} cannot be given per row; it must be {domain_of(field)}.", name)
    if value.shape != (batch,):
        raise ParameterError(
            f"{sampler}: {name} per row must have the shape [{batch}] (one value a row), got {list(value.shape)}.", name
        )
    if value.device != device:
        raise ParameterError(
            f"{sampler}: {name} per row must be on {device}, where the logits are, got {value.device}.", name
        )
    whole = not value.dtype.is_floating_point and value.dtype != torch.bool and not value.dtype.is_complex
    if not (whole or (field.annotation is float and value.dtype.is_floating_point)):
        raise ParameterError(f"{sampler}: {name} per row must hold {domain_of(field)}, got {value.dtype}.", name)
    if value.device.type == "cpu":
        _check_values(sampler, name, field, value.tolist())
    return value.to(_tensor_dtype(field)).resolve_neg()


def _check_values(sampler: str, name: str, field: FieldInfo, values: list[Any]) -> None:
    try:
        _adapter(field).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        row = first["loc"][0]
        raise ParameterError(
            f"{sampler}: {name} must be {domain_of(field)}, got {first['input']!r} in row {row}.", name
        ) from None


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    """Validates a list of one field's values; kept on the field, since making it takes far longer than using it."""
    key = (field.annotation, tuple(map(repr, field.metadata)))
    if key not in _ADAPTERS:
        element: Any = field.annotation
        for item in field.metadata:
            element = Annotated[element, item]
        _ADAPTERS[key] = TypeAdapter(list[element], config=ConfigDict(allow_inf_nan=False))
    return _ADAPTERS[key]


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
