"""Parameters of a sampler: declared once as a pydantic class, from which come checks, messages and options.

A sampler's `Params` is a subclass of `SamplerParams` whose fields are made with `Param`: typed (int or float, also bool
and str), bounded, documented. Nothing here knows a particular sampler.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

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
    """Base class of every sampler's parameters: immutable, no unknown names, no NaN or infinity, no bool as number."""

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
    message = f"{sampler} has no parameter {name!r}; "
    message += f"it has: {', '.join(known)}." if known else "it has none."
    near = difflib.get_close_matches(name, known, n=1)
    return message + (f" Did you mean {near[0]!r}?" if near else "")


def _parameter_error(sampler: str, schema: type[SamplerParams], error: ValidationError) -> ParameterError:
    first = error.errors()[0]
    if not first["loc"]:
        own = first.get("ctx", {}).get("error")  # what a validator of ours raised, which pydantic has wrapped
        if isinstance(own, ParameterError):
            return ParameterError(f"{sampler}: {own}", own.parameter)
        return ParameterError(f"{sampler}: {first['msg']}.")
    name = str(first["loc"][0])
    field = schema.model_fields[name]
    reason = f" ({first['msg']})" if first["type"] in ("value_error", "assertion_error") else ""
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
    rows = RowParams()
    for name, field in schema.model_fields.items():
        value = overrides[name] if name in overrides else getattr(params, name)
        setattr(rows, name, _row_value(sampler, schema, name, field, value, name in overrides, batch, device))
    return rows


def _row_value(
    sampler: str,
    schema: type[SamplerParams],
    name: str,
    field: FieldInfo,
    value: Any,
    given: bool,
    batch: int,
    device: torch.device,
) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.ndim > 0:
        return _checked_tensor(sampler, name, field, value, batch, device)
    if given:
        value = getattr(build_params(sampler, schema, {name: value}), name)
    if field.annotation not in NUMBERS:
        return value
    if field.annotation is int:
        value = clamped(value)
    return torch.full((batch,), value, dtype=_tensor_dtype(field), device=device)


def is_whole(value: Any, domain: range = INT64) -> bool:
    """Whether a value is an integer of `domain`; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value in domain


def clamped(value: int) -> int:
    """The nearest integer of 64 bits: beyond it no vocabulary and no count reaches."""
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
