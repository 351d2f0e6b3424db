"""What a sampler is given is checked at its border: the user is told what is wrong, and no plugin is blamed for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import neurogen
from neurogen import ParameterError

LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k": True}, "topk: k must be an integer >= 0, got True."),
        ({"k": 1.5}, "topk: k must be an integer >= 0, got 1.5."),
        ({"temperature": False}, "topk: temperature must be a finite number >= 0, got False."),
        ({"temperature": float("nan")}, "topk: temperature must be a finite number >= 0, got nan."),
    ],
)
def test_a_value_outside_its_domain_is_one_sentence(values: dict[str, Any], message: str) -> None:
    sampler = neurogen.load_sampler("topk")
    for call in (lambda: neurogen.load_sampler("topk", **values), lambda: sampler.sample(LOGITS, **values)):
        with pytest.raises(ParameterError) as refused:
            call()
        assert (str(refused.value), refused.value.parameter) == (message, *values)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([[0.0, 1.0]], "logits must be a torch tensor [batch, vocab], got list."),
        (LOGITS[0], "logits must have the shape [batch, vocab] with vocab >= 1, got [3]."),
        (LOGITS[:, :0], "logits must have the shape [batch, vocab] with vocab >= 1, got [2, 0]."),
        (LOGITS.double(), "takes logits of bfloat16, float16, float32, got float64."),
        (
            LOGITS.to_sparse(),
            "must be a dense tensor, got the layout sparse_coo. Make them dense first, with logits.to",
        ),
    ],
)
@pytest.mark.parametrize("call", ["sample", "probs", "support"])
def test_logits_that_no_sampler_can_read_are_an_error_of_the_caller(logits: Any, message: str, call: str) -> None:
    with pytest.raises(ParameterError) as refused:
        getattr(neurogen.load_sampler("topk"), call)(logits)
    assert message in str(refused.value)
    assert refused.value.parameter == "logits"


@pytest.mark.parametrize("name", ["seed", "position"])
@pytest.mark.parametrize("value", [True, 1.0, 2**63, "1", None, torch.tensor(True), torch.tensor([1, 2, 3])])
def test_numbers_of_a_row_are_whole_and_of_64_bits(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=rf"{name} must be an int .*int64 tensor \[2\]") as refused:
        neurogen.load_sampler("topk").sample(LOGITS, **{name: value})
    assert refused.value.parameter == name
