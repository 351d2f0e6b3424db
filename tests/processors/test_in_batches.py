"""Logits processors in use: several in order, in batches whose rows come and go, as specs, and when they fail."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processor_helpers import VOCAB, Letters, made, one
from torch import Tensor

import neurogen
from neurogen import History, Param, ParameterError, PluginError, Processor, SamplerParams
from neurogen.decoding.engine import engine_for
from neurogen.decoding.processing import Processing
from neurogen.decoding.request import Request
from neurogen.models.language_model import LanguageModel
from neurogen.processors import FIRST_PARTY
from neurogen.text.runner import Prompt, Result, Runner

# Several


def test_processors_work_in_the_order_in_which_they_are_given() -> None:
    """logit 2 of token 0: (2 / 2) + 3 = 4 one way, (2 + 3) / 2 = 2.5 the other."""

    def result(spec: str) -> float:
        processors = neurogen.load_processors(spec)
        for processor in processors:
            processor.prepare(Letters(), VOCAB)
        logits = torch.full((VOCAB,), 2.0)
        Processing(Request((0,), 5, seed=0, processors=processors)).process(logits)
        return logits[0].item()

    penalty, bias = "repetition-penalty(penalty=2)", 'logit-bias(bias="0:3")'
    assert (result(f"{penalty}+{bias}"), result(f"{bias}+{penalty}")) == (4.0, 2.5)


class Tables(Processor):
    """Bans the last token of the vocabulary, which it notes while it is prepared: in an attribute that it makes, and in
    containers that were there."""

    name = "tables"
    api_version = 1

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.found: list[int] = []
        self.widths: dict[str, int] = {}

    def prepare(self, tokenizer: Any, vocab_size: int) -> None:
        assert not self.found, "prepared by somebody else"
        self.found.append(vocab_size - 1)
        self.widths["vocab"] = self.vocab = vocab_size

    def process(self, logits: Tensor, history: History, memory: None) -> None:
        assert (len(logits), self.found) == (self.vocab, [self.vocab - 1]) == (self.widths["vocab"], self.found)
        logits[self.found] = -torch.inf


def test_one_list_of_processors_serves_runners_of_several_models(stories: LanguageModel, tiny: LanguageModel) -> None:
    """What is prepared belongs to a runner: each gives what it gives with processors of its own."""
    spec = (
        "logit-bias(bias=\"' the':-3\")+allowed-tokens(tokens=\"' the', ' a', 'b', 'c', 'd'\")"
        "+banned-tokens(tokens=\"' a'\")+banned-texts(texts=\"'b'\")+dry"
    )
    assert stories.vocab_size != tiny.vocab_size
    options: dict[str, Any] = {"max_new_tokens": 8, "seed": 3, "n": 2, "chat": False}

    def runner(model: LanguageModel, processors: Sequence[Processor]) -> Runner:
        return Runner(model, neurogen.load_sampler("topk"), processors=processors, **options)

    def texts(runner: Runner) -> list[str]:
        return [result.text for result in runner.generate("Once")]

    shared = [*neurogen.load_processors(spec), Tables()]
    runners = [runner(model, shared) for model in (stories, tiny, stories)]
    expected = [texts(runner(one, [*neurogen.load_processors(spec), Tables()])) for one in (stories, tiny, stories)]
    assert [texts(one) for one in runners] == expected
    assert shared[-1].found == []  # type: ignore[attr-defined]


ALL = (
    "repetition-penalty(penalty=1.1, last_n=20)+presence-penalty(penalty=0.3)+frequency-penalty(penalty=0.2)+dry"
    "+logit-bias(bias=\"' ball':1,'Lily':-2\")+no-repeat-ngram(size=4)+banned-tokens(tokens=\"'Tom', 'big red'\")"
    "+min-new-tokens(tokens=10)"
)
PROMPTS = [
    "Once upon a time, there was a little girl",
    "Tom",
    "The sun was bright. The sun was bright. The sun",
    "One day",
]


@pytest.mark.parametrize("sampler", ["greedy", "topk"])
def test_in_a_batch_whose_rows_come_and_go_each_is_as_alone(stories: LanguageModel, sampler: str) -> None:
    chosen = neurogen.load_sampler(sampler)
    prompts = [Prompt(i, text, max_new_tokens=10 + 9 * i) for i, text in enumerate(PROMPTS)]
    options: dict[str, Any] = {"seed": 5, "n": 2}

    def ids(batch_size: int, those: Sequence[Prompt], spec: str = ALL) -> dict[tuple[int, int], list[int]]:
        processors = neurogen.load_processors(spec) if spec else []
        runner = Runner(stories, chosen, processors=processors, batch_size=batch_size, **options)
        return {(e.index, e.sample): e.token_ids for e in runner.run(those) if isinstance(e, Result)}

    together = ids(3, prompts)
    alone = {key: value for prompt in prompts for key, value in ids(1, [prompt]).items()}
    assert together == alone
    assert len(together) == 8
    assert together != ids(3, prompts, spec="")


def test_a_prompt_may_have_processors_of_its_own(stories: LanguageModel) -> None:
    greedy = neurogen.load_sampler("greedy")
    spec = "banned-tokens(tokens=\"'Lily'\")"
    run = neurogen.load_processors("min-new-tokens(tokens=3)")
    runner = Runner(stories, greedy, processors=run, max_new_tokens=20)
    text = "Once upon a time, there was a little girl named"
    prompts = [Prompt(0, text), Prompt(1, text, processors=spec), Prompt(2, text, processors="")]
    results = {event.index: event for event in runner.run(prompts) if isinstance(event, Result)}
    assert [results[i].processors for i in range(3)] == [["min-new-tokens(tokens=3)"], [repr(one(spec))], None]
    assert ["Lily" in results[i].text for i in range(3)] == [True, False, True]


# Errors


def test_every_processor_shows_itself_as_a_spec_that_gives_it_again() -> None:
    specs = {
        "allowed-tokens": "allowed-tokens(tokens=\"5, 'it\\\\'s'\", end=false)",
        "banned-tokens": "banned-tokens(tokens=5)",
        "banned-texts": "banned-texts(texts=\"'a', 'b'\")",
        "logit-bias": "logit-bias(bias=5:-2)",
        "grammar": 'grammar(regex="a(b|\\"c\\")+")',
    }
    if not _has_llguidance():
        del specs["grammar"]
    for cls in FIRST_PARTY:
        if cls.name == "grammar" and "grammar" not in specs:
            continue
        processor = one(specs.get(cls.name, cls.name))
        assert type(processor) is cls
        assert repr(one(repr(processor))) == repr(processor)
        assert processor.origin == f"neurogen {neurogen.__version__}"


def _has_llguidance() -> bool:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("repetition-penalty(penalty=0)", r"penalty must be a finite number > 0, got 0"),
        ("repetition-penalty(last_n=-2)", r"last_n must be an integer >= -1, got -2"),
        ("no-repeat-ngram(size=0)", r"size must be an integer >= 1, got 0"),
        ("no-repeat-ngram(n=2)", r"no-repeat-ngram has no parameter 'n'; it has: size"),
        ("min-new-tokens(tokens=-1)", r"tokens must be an integer >= 0"),
        ("dry(base=0.5)", r"base must be a finite number >= 1"),
        ("dry(allowed_length=0)", r"allowed_length must be an integer >= 1"),
        ('dry(sequence_breakers="")', r"sequence_breakers is empty"),
        ("logit-bias", r"logit-bias: bias is empty. Give at least one token"),
        ("logit-bias(bias=5)", r"bias cannot be read at its end of '5'; it is written ID:NUMBER"),
        ('logit-bias(bias="5:inf")', r"bias cannot be read at ':inf'"),
        ('logit-bias(bias="cat:1")', r"bias cannot be read at 'cat:1'"),
        ('logit-bias(bias="{\\"5\\": \\"x\\"}")', r"bias cannot be read at"),
        ("banned-tokens", r"tokens is empty"),
        ('banned-tokens(tokens="\udc80")', r"tokens holds half of a character"),
        (r'banned-tokens(tokens="\"\\udc80\"")', r"tokens cannot be read"),
        ('banned-tokens(tokens="5,")', r"tokens cannot be read at ',' of '5,'"),
        ('banned-tokens(tokens="\'cat")', r"tokens cannot be read at \"'cat\""),
        ("banned-tokens(tokens=\"''\")", r"tokens cannot be read"),
        (
            'allowed-tokens(tokens="@/no/such/file")',
            r"the file '/no/such/file' that tokens names cannot be read: No such",
        ),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_with_what_can(spec: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        neurogen.load_processors(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["banned-tokens(tokens=40)", "allowed-tokens(tokens=40)", "logit-bias(bias=40:1)", "dry(sequence_breakers=40)"],
)
def test_an_id_that_the_model_lacks_is_refused_when_the_model_is_known(spec: str) -> None:
    with pytest.raises(ParameterError, match=r"holds the id 40; ids of this model are 0 to 39. A text of digits"):
        one(spec).prepare(Letters(), VOCAB)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ParameterError, match="holds the text 'zebra', which this model's tokenizer has no tokens for"):
        one("banned-tokens(tokens=\"'zebra'\")").prepare(Letters(), VOCAB)


def test_lists_in_a_file_are_read_and_known_by_their_checksum(tmp_path: Any) -> None:
    path = tmp_path / "bias.txt"
    path.write_text("12:-5\n' 7' : 2.5,\n\n3:-inf\n")
    spec = f'logit-bias(bias="@{path}")'
    processor = one(spec)
    assert processor._pairs == [(12, -5.0), (" 7", 2.5), (3, -float("inf"))]  # type: ignore[attr-defined]
    assert re.fullmatch(r'logit-bias\(bias="@.*", checksum="[0-9a-f]{8}"\)', repr(processor))
    assert repr(one(repr(processor))) == repr(processor)
    path.write_text("12:-4")
    assert repr(one(spec)) != repr(processor)
    with pytest.raises(ParameterError, match="has changed: its SHA-256 begins with"):
        one(repr(processor))
    path.write_bytes(b"\xff")
    with pytest.raises(ParameterError, match="must be a text in UTF-8"):
        one(spec)


def test_biases_of_openais_api_are_read() -> None:
    processor = made("logit-bias", bias='{"5": -1.5, "6": 100}')
    processor.prepare(Letters(), VOCAB)
    logits = torch.zeros(VOCAB)
    processor.process(logits, History([1], 1, frozenset(), 5), None)
    assert {i: logits[i].item() for i in range(VOCAB) if logits[i] != 0} == {5: -1.5, 6: 100.0}


def test_a_prompt_may_hold_ids_without_logits() -> None:
    """A model's embedding may be wider than its tokenizer."""
    for spec in ("repetition-penalty", "no-repeat-ngram(size=1)", 'dry(allowed_length=1, sequence_breakers="3")'):
        processor = one(spec)
        processor.prepare(Letters(), VOCAB)
        logits = torch.zeros(VOCAB)
        Processing(Request((50, 45, 50, 45, 50), 5, seed=0, processors=[processor])).process(logits)
        assert (logits == 0).all()


def test_processors_that_leave_nothing_are_blamed_and_end_one_sequence_alone(stories: LanguageModel) -> None:
    runner = Runner(stories, neurogen.load_sampler("greedy"), max_new_tokens=4)
    nothing = 'allowed-tokens(tokens="5", end=false)+banned-tokens(tokens=5)'
    events = list(runner.run(iter([Prompt(0, "Tom", processors=nothing), Prompt(1, "Tom")])))
    (failure,) = [event for event in events if hasattr(event, "error")]
    assert failure.index == 0
    assert "the processors allowed-tokens, banned-tokens together leave no token" in str(failure.error)
    assert [event.index for event in events if isinstance(event, Result)] == [1]


class Tired(Processor):
    """Cannot go on after some tokens; its error, or one that is none of neurogen's."""

    name = "tired"
    api_version = 1

    class Params(SamplerParams):
        after: int = Param(2, description="Tokens.")

    def process(self, logits: Tensor, history: History, memory: None) -> None:
        if history.new_tokens == self.params.after:
            raise ParameterError("tired: that is enough.")
        if history.new_tokens > 5:
            raise ZeroDivisionError("oh")


def test_a_processor_that_refuses_ends_its_own_sequence_alone(stories: LanguageModel) -> None:
    greedy = neurogen.load_sampler("greedy")
    engine = engine_for(stories, greedy, batch_size=3)
    ids = tuple(stories.tokenizer.encode("Tom"))
    requests = [Request(ids, 5, seed=0, processors=[Tired(after=after)], key=after) for after in (2, 99, 3)]
    steps: dict[int, list[Any]] = {2: [], 99: [], 3: []}
    for step in engine.generate(requests):
        steps[step.key].append(step)
    assert {key: len(found) for key, found in steps.items()} == {2: 3, 99: 5, 3: 4}
    assert [steps[key][-1].finish_reason for key in (2, 99, 3)] == ["error", "length", "error"]
    assert str(steps[2][-1].error) == "tired: that is enough."
    with pytest.raises(
        PluginError, match=r"Processor 'tired' \(class .*Tired\) failed in process: ZeroDivisionError: oh"
    ):
        list(engine.generate([Request(ids, 9, seed=0, processors=[Tired(after=99)])]))


# Numbers and files


@pytest.mark.parametrize(
    "spec",
    [
        'logit-bias(bias="5:1e39")',
        'logit-bias(bias="5:-1e31")',
        'logit-bias(bias="{\\"5\\": 1e39}")',
        'logit-bias(bias="{\\"5\\": NaN}")',
        'logit-bias(bias="{\\"5\\": Infinity}")',
        'logit-bias(bias="5:1e400")',
        "repetition-penalty(penalty=1e-40)",
        "repetition-penalty(penalty=1e39)",
        "presence-penalty(penalty=-1e39)",
        "frequency-penalty(penalty=1e31)",
        "dry(multiplier=1e39)",
        "dry(base=1e200)",
    ],
)
def test_a_number_that_logits_cannot_take_is_refused_at_once(spec: str) -> None:
    with pytest.raises(ParameterError, match=r"1e\+30"):
        neurogen.load_processors(spec)


def test_the_largest_numbers_together_leave_logits_finite(stories: LanguageModel) -> None:
    spec = (
        "repetition-penalty(penalty=1e-30)+presence-penalty(penalty=-1e30)+frequency-penalty(penalty=1e30)"
        '+logit-bias(bias="{\\"5\\": 1e30, \\"6\\": -1e30}")+logit-bias(bias="5:1e30,5:1e30,7:-inf")'
    )
    processors = neurogen.load_processors(spec)
    (result,) = Runner(stories, neurogen.load_sampler("topk"), processors=processors, max_new_tokens=6).generate("Tom")
    assert result.new_tokens == 6


def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    for name, content, spec in (
        ("tokens.txt", b"5, 6", "banned-tokens(tokens=@FILE)"),
        ("bias.json", b'{"5": 1}', "logit-bias(bias=@FILE)"),
        ("texts.txt", b"'a'", "banned-texts(texts=@FILE)"),
        ("breakers.txt", b"'a'", "dry(sequence_breakers=@FILE)"),
    ):
        (tmp_path / name).write_bytes(mark + content)
        (processor,) = neurogen.load_processors(spec.replace("FILE", str(tmp_path / name)))
        processor.prepare(Letters(), VOCAB)
