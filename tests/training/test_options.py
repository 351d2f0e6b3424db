"""Options of a training: what is wrong is said in one sentence, whether they are made or replaced."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from neurogen import ParameterError
from neurogen.training.options import TrainerOptions, TrainingOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": "a.jsonl"}, "data must be a sequence of names, got 'a.jsonl'."),
        ({"hold_out": 1}, "hold_out must be 0 or an integer >= 2, got 1."),
        ({"context": True}, "context must be an integer >= 1, got True."),
        ({"keep": 2**63}, "keep must be an integer >= 1, got 9223372036854775808."),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number > 0, got nan."),
        ({"precision": "fp8"}, "precision must be float32 or bf16, got 'fp8'."),
    ],
)
def test_a_wrong_value_is_told_with_its_domain(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError) as error:
        TrainingOptions(**{"data": ("a.jsonl",), **values})
    assert str(error.value) == message
    assert error.value.parameter == next(iter(values))


def test_options_are_checked_again_where_one_is_replaced() -> None:
    options = TrainingOptions(data=("a.jsonl",))
    assert TrainingOptions(**asdict(replace(options, max_chunks=3))) == replace(options, max_chunks=3)
    with pytest.raises(ParameterError, match="max_chunks must be an integer >= 1, got 0"):
        replace(options, max_chunks=0)


def test_options_that_do_not_exist_or_are_missing_are_errors_of_the_call() -> None:
    with pytest.raises(TypeError, match="sampler"):
        TrainerOptions(sampler="topk")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="data"):
        TrainingOptions()  # type: ignore[call-arg]
