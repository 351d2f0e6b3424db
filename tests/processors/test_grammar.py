"""Grammars: what comes out keeps the schema, expression or grammar, whatever samples and whatever tokenizer it is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import neurogen
from neurogen import ParameterError, PluginError, Processor
from neurogen.decoding.processing import Processing
from neurogen.decoding.request import Request
from neurogen.files import to_json
from neurogen.models.language_model import LanguageModel
from neurogen.text.runner import Failure, Prompt, Result, Runner

pytest.importorskip("llguidance", reason="llguidance is not installed (pip install 'neurogen[grammar]')")

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog", "größe"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}
DATE = r"(19|20)\d{2}-[01]\d-[0-3]\d( at (noon|midnight))?"
QUICK = ("greedy", "topk", "topp")
"""Samplers whose kernels other quick tests compile, too."""

SUM = 'start: term (" + " term){1,3}\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,2}/\n'


def grammar(**params: str) -> Processor:
    return neurogen.Registry(disabled=()).load_processor("grammar", **params)


def samplers() -> list[str]:
    """Every sampler that is installed."""
    return sorted({plugin.name for plugin in neurogen.Registry(disabled=()).plugins()})


def is_person(text: str) -> bool:
    value = json.loads(text)
    return (
        set(value) == {"name", "age", "pets"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 12
        and type(value["age"]) is int
        and 0 <= value["age"] <= 120
        and len(value["pets"]) <= 2
        and set(value["pets"]) <= {"cat", "dog", "größe"}
    )


def is_sum(text: str) -> bool:
    """Of one to three more terms at every level."""
    inner = re.compile(r"\([1-9]\d{0,2}( \+ [1-9]\d{0,2}){1,3}\)")
    while inner.search(text):
        text = inner.sub("1", text)
    return re.fullmatch(r"[1-9]\d{0,2}( \+ [1-9]\d{0,2}){1,3}", text) is not None


def results(model: LanguageModel, sampler: str, processor: Processor, count: int, length: int = 200) -> list[Result]:
    runner = Runner(
        model, neurogen.load_sampler(sampler), processors=[processor], n=count, seed=3, max_new_tokens=length, chat=None
    )
    return runner.generate("Describe a person, a date or a sum.")


@pytest.mark.parametrize("model", ["stories", "tiny"])
@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.exhaustive) for name in samplers()]
)
def test_what_ends_keeps_the_expression_and_what_is_cut_says_so(
    model: str, sampler: str, request: pytest.FixtureRequest
) -> None:
    """SentencePiece models, one of random weights: nothing but the grammar makes it write a date."""
    loaded = request.getfixturevalue(model)
    for result in results(loaded, sampler, grammar(regex=DATE), count=4, length=22):
        if result.finish_reason == "eos":
            assert re.fullmatch(DATE, result.text)
            assert result.notices is None
        else:
            assert result.finish_reason == "length"
            assert (result.notices is None) == (re.fullmatch(DATE, result.text) is not None)


@pytest.mark.parametrize("sampler", ["greedy", "topk"])
def test_json_of_a_small_model_keeps_its_schema(stories: LanguageModel, sampler: str) -> None:
    for result in results(stories, sampler, grammar(json_schema=json.dumps(PERSON)), count=3):
        assert result.finish_reason == "eos"
        assert is_person(result.text)


IN_CI = {"greedy", "topk", "topp", "mirostat"}
"""Of these CI runs the large model, of all others `make exhaustive`."""


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(name, marks=pytest.mark.slow if name in IN_CI else pytest.mark.exhaustive) for name in samplers()],
)
def test_smollm2_keeps_schema_expression_and_grammar(smollm2: LanguageModel, sampler: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    ended = 0
    for result in results(smollm2, sampler, grammar(json_schema=json.dumps(PERSON)), count=3, length=120):
        ended += result.finish_reason == "eos"
        if result.finish_reason == "eos":
            jsonschema.validate(json.loads(result.text), PERSON)
    for result in results(smollm2, sampler, grammar(regex=DATE), count=3, length=40):
        ended += result.finish_reason == "eos"
        assert re.fullmatch(DATE, result.text)
    for result in results(smollm2, sampler, grammar(grammar=SUM), count=3, length=80):
        ended += result.finish_reason == "eos"
        assert is_sum(result.text) or result.notices
    assert ended >= 7


@pytest.mark.slow
def test_the_starter_model_keeps_a_schema(tmp_path: Path) -> None:
    from neurogen.models.language_model import load_model

    (tmp_path / "person.json").write_text(json.dumps(PERSON), encoding="utf-8")
    processor = grammar(json_schema=str(tmp_path / "person.json"))
    for result in results(load_model("starter", device="cpu"), "topp", processor, count=4, length=150):
        assert result.finish_reason == "eos"
        assert is_person(result.text)


def test_a_sequence_may_end_exactly_where_the_grammar_is_satisfied(stories: LanguageModel) -> None:
    """a(bc)?: not before the a, then either, within b not, and behind c nothing else."""
    tokenizer, vocab = stories.tokenizer, stories.vocab_size
    (end,) = tokenizer.eos_ids
    letters = {letter: next(t for t in range(vocab) if tokenizer.token_bytes(t) == letter.encode()) for letter in "abc"}
    processor = grammar(regex="a(bc)?")
    processor.prepare(tokenizer, vocab)
    processing = Processing(Request((1,), 9, seed=0, stop_ids=frozenset({end}), processors=[processor]))

    def possible() -> set[bytes]:
        logits = torch.zeros(vocab)
        processing.process(logits)
        return {
            b"<end>" if token == end else tokenizer.token_bytes(token)
            for token in logits.isfinite().nonzero()[:, 0].tolist()
        }

    assert possible() == {b"a"}
    processing.accept(letters["a"])
    assert possible() == {b"b", b"<end>"}
    processing.accept(letters["b"])
    assert possible() == {b"c"}
    processing.accept(letters["c"])
    assert possible() == {b"<end>"}


def test_nothing_may_follow_a_complete_text_and_none_is_without_an_end(stories: LanguageModel) -> None:
    """Other stop tokens than the tokenizer's own end the sequence, and its own does not."""
    processor = grammar(regex="a{0}")
    processor.prepare(stories.tokenizer, stories.vocab_size)
    logits = torch.zeros(stories.vocab_size)
    Processing(Request((1,), 9, seed=0, stop_ids=frozenset({77}), processors=[processor])).process(logits)
    assert logits.isfinite().nonzero().flatten().tolist() == [77]


def test_requests_with_grammars_do_not_disturb_each_other(stories: LanguageModel) -> None:
    dates = [
        Prompt(i, f"{i}", processors=f'grammar(regex="{letter}+ [0-9]{{{i + 1}}}")') for i, letter in enumerate("abc")
    ]
    runner = Runner(stories, neurogen.load_sampler("topk"), seed=1, n=2, max_new_tokens=60, batch_size=4)
    found = {(e.index, e.sample): e for e in runner.run(iter(dates)) if isinstance(e, Result)}
    assert len(found) == 6
    for (index, _), result in found.items():
        if result.finish_reason == "eos":
            assert re.fullmatch(rf"{'abc'[index]}+ [0-9]{{{index + 1}}}", result.text)


def test_a_text_that_was_cut_off_says_why(stories: LanguageModel) -> None:
    greedy = neurogen.load_sampler("greedy")
    processor = grammar(regex="[a-z ]{30}")
    (cut,) = Runner(stories, greedy, processors=[processor], max_new_tokens=3).generate("Once")
    assert cut.notices == [
        "The text is incomplete: max_new_tokens was reached before the regular expression was satisfied. "
        "Allow more new tokens."
    ]
    assert cut.to_json()["notices"] == cut.notices
    (stopped,) = Runner(stories, greedy, processors=[processor], max_new_tokens=40, stop=(" ",)).generate("Once")
    assert stopped.finish_reason == "stop"
    assert stopped.notices is not None
    assert "a stop string came before" in stopped.notices[0]
    exact = grammar(regex="[ab]{3}")
    (whole,) = Runner(stories, greedy, processors=[exact], max_new_tokens=3).generate("Once")
    assert (whole.finish_reason, whole.notices) == ("length", None)


def test_digits_are_ascii_and_texts_may_be_any_unicode(tiny: LanguageModel) -> None:
    """A random model with byte tokens would soon write a digit of another script."""
    for result in results(tiny, "topk", grammar(regex=r"\d\d"), count=5, length=10):
        assert re.fullmatch(r"[0-9]{2}", result.text)
    for result in results(tiny, "topk", grammar(regex="(日本|größe)"), count=5, length=10):
        assert result.text in ("日本", "größe")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "nothing is given. Give one of json_schema, regex and grammar"),
        ({"regex": "a", "grammar": SUM}, "regex, grammar is given. Give one of"),
        ({"regex": "(a"}, r"regex cannot be used: a group is not closed, at character 2 of '\(a'"),
        ({"regex": "(?=a)b"}, "regex cannot be used: look-ahead and look-behind cannot be kept"),
        (
            {"regex": "a{3,1}"},
            r"regex cannot be used: \{3,1\} asks for at least 3 and at most 1, at character 2",
        ),
        ({"grammar": "start: foo"}, "grammar cannot be used: there is no rule foo, at line 1, column 8"),
        ({"grammar": 'start: "a" )'}, r"a rule was expected, found \), at line 1, column 12"),
        ({"grammar": 'first: "a"'}, "grammar cannot be used: there is no rule start"),
        (
            {"grammar": "start: A\nA: /(/"},
            "a regular expression cannot be used: a group is not closed, at line 2, column 4",
        ),
        ({"grammar": 'root ::= "a" b'}, "as GBNF, there is no rule b"),
        ({"grammar": 'root ::= "a'}, "as GBNF, unexpected end of input, at line 1"),
        ({"grammar": 'start: %json {"type": "objct"}'}, "a JSON schema cannot be used: there is no type objct"),
        ({"grammar": "no/such.lark"}, "the file 'no/such.lark' that grammar names cannot be read: No such file"),
        ({"grammar": "@no such"}, "the file 'no such' that grammar names cannot be read: No such file"),
        ({"json_schema": "no/such.json"}, "the file 'no/such.json' that json_schema names cannot be read"),
        ({"json_schema": '{"type": '}, "json_schema is no JSON: it fails with Expecting value"),
        ({"json_schema": "false"}, "no value keeps the schema false"),
        ({"json_schema": "5"}, "must be a JSON object such as .*, got '5'"),
        ({"json_schema": "[{}]"}, r"must be a JSON object such as .*, got '\[\{\}\]'"),
        (
            {"json_schema": '{"properties": {"a": {"type": "objct"}}}'},
            'there is no type "objct"; .*, at #/properties/a/type',
        ),
        ({"json_schema": '{"required": true}'}, "the type of the value must be array, got true, at #/required"),
        (
            {"json_schema": '{"items": {"format": "phone"}}'},
            "the format phone cannot be kept; date-time, .*, at #/items",
        ),
        ({"json_schema": '{"$ref": "#/x"}'}, r"\$ref names #/x, which is not there"),
        ({"json_schema": '{"$ref": "http://a/b"}'}, "http://a/b, which it refers to, lies elsewhere"),
        (
            {"json_schema": '{"anyOf": [{"type": "string", "pattern": "^(?!a)"}]}'},
            "look-ahead and look-behind cannot be kept while a text is written, at character 2 of .*#/anyOf/0/pattern",
        ),
        (
            {"json_schema": '{"allOf": [{"not": {"type": "string"}}]}'},
            "the keyword not cannot be kept .*, at #/allOf/0",
        ),
        ({"json_schema": '{"items": {"uniqueItems": true}}'}, "the keyword uniqueItems cannot be kept .*, at #/items"),
        ({"json_schema": '{"divisibleBy": 3}'}, "the keyword divisibleBy cannot be kept"),
        ({"json_schema": '{"minimum": 3, "exclusiveMinimum": true}'}, "exclusiveMinimum is no number"),
        ({"json_schema": "{} []"}, "json_schema is no JSON: it fails with Extra data"),
    ],
)
def test_what_is_no_grammar_is_refused_in_one_paragraph(params: dict[str, str], message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        grammar(**params)
    assert "\n" not in str(caught.value)
    assert "^" not in str(caught.value).replace("(?!a)", "").replace("'^", "")  # no picture of the library's


def test_a_file_of_json_that_is_no_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(ParameterError, match=r"json_schema must be a JSON object"):
        grammar(json_schema=str(path))
    path.write_text("{")
    with pytest.raises(ParameterError, match=r"json_schema is no JSON: the file '.*list.json' fails with"):
        grammar(json_schema=str(path))


def test_a_schema_of_another_content_is_another_processor(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    first = repr(grammar(json_schema=str(path)))
    assert re.fullmatch(r'grammar\(json_schema=".*schema.json", checksum="[0-9a-f]{8}"\)', first)
    path.write_text('{"type": "string"}')
    assert repr(grammar(json_schema=str(path))) != first
    with pytest.raises(ParameterError, match="has changed"):
        neurogen.load_processors(first)


@pytest.mark.parametrize(
    "params", [{"regex": r"[^\x00-\x{10FFFF}]"}, {"json_schema": '{"$ref": "#"}'}, {"grammar": "start: start"}]
)
def test_a_grammar_that_no_text_keeps_is_refused(stories: LanguageModel, params: dict[str, str]) -> None:
    with pytest.raises(ParameterError, match="cannot be used: no text that this model can write keeps it"):
        grammar(**params).prepare(stories.tokenizer, stories.vocab_size)


def test_a_grammar_that_is_too_large_ends_its_sequence_alone(stories: LanguageModel) -> None:
    runner = Runner(stories, neurogen.load_sampler("greedy"), max_new_tokens=4)
    prompts = [Prompt(0, "Tom", processors='grammar(regex="(a{1000}){1000}")'), Prompt(1, "Tom")]
    failure, result = sorted(
        (event for event in runner.run(iter(prompts)) if isinstance(event, Failure | Result)), key=lambda e: e.index
    )
    assert isinstance(failure, Failure)
    assert re.search("grammar: regex cannot be (used|followed any further)", str(failure.error))
    assert isinstance(result, Result)


def test_a_tokenizer_without_an_end_is_refused(stories: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories.tokenizer, "eos_ids", frozenset())
    with pytest.raises(ParameterError, match="has no token that ends a sequence"):
        grammar(regex="a").prepare(stories.tokenizer, stories.vocab_size)


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        PluginError, match=r"needs the library llguidance, which is not installed. .*neurogen\[grammar\]"
    ):
        grammar(regex="a")
    neurogen.load_processors("repetition-penalty")  # needs none


def test_the_library_is_imported_when_a_grammar_is_asked_for() -> None:
    code = (
        "import sys, neurogen; neurogen.load_processors('dry+repetition-penalty'); print('llguidance' in sys.modules);"
        "neurogen.load_processors('grammar(regex=a)'); print('llguidance' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


# With other processors


def told(model: LanguageModel, spec: str, **options: Any) -> Result:
    (result,) = Runner(
        model, neurogen.load_sampler("topk"), processors=neurogen.load_processors(spec), seed=1, chat=False, **options
    ).generate("Once upon a time")
    return result


@pytest.mark.parametrize(
    "other",
    [
        "min-new-tokens(tokens=15)",
        'banned-tokens(tokens="{eos}")',
        'logit-bias(bias="{eos}:-inf")',
        "allowed-tokens(tokens=\"'1', '2', '3', '4'\", end=false)",
    ],
)
@pytest.mark.parametrize("grammar_first", [False, True])
def test_a_complete_text_ends_whatever_bans_its_end(stories: LanguageModel, other: str, grammar_first: bool) -> None:
    """The grammar lets nothing follow, the other bans the end: the text is whole, and the result says what gave way."""
    (eos,) = stories.eos_ids
    both = [other.format(eos=eos), 'grammar(regex="[1-4]{3}")']
    result = told(stories, "+".join(reversed(both) if grammar_first else both), max_new_tokens=20)
    assert re.fullmatch("[1-4]{3}", result.text)
    assert result.finish_reason == "eos"
    assert result.notices is not None
    (notice,) = result.notices
    assert "where grammar lets nothing follow" in notice
    assert f"its end was banned: {other.partition('(')[0]}." in notice


def test_schema_true_and_min_new_tokens_give_json(stories: LanguageModel) -> None:
    """`true` is whole after one or two tokens, and nothing may follow it."""
    result = told(stories, 'grammar(json_schema="{\\"const\\": true}")+min-new-tokens(tokens=8)', max_new_tokens=20)
    assert (result.text, result.finish_reason) == ("true", "eos")
    assert result.notices


def test_min_new_tokens_gives_way_to_bans_of_everything_else(stories: LanguageModel) -> None:
    spec = "allowed-tokens(tokens=\"'b'\")+no-repeat-ngram(size=1)+min-new-tokens(tokens=9)"
    result = told(stories, spec, max_new_tokens=12)
    assert result.finish_reason == "eos"
    assert result.notices == ["min-new-tokens could not be kept everywhere: the other processors left no other token."]


def test_no_repeat_ngram_gives_way_where_the_grammar_forces_a_repetition(stories: LanguageModel) -> None:
    result = told(stories, 'no-repeat-ngram(size=2)+grammar(regex="(ab-){6}")', max_new_tokens=60)
    assert (result.text, result.finish_reason) == ("ab-" * 6, "eos")
    assert result.notices is not None
    assert result.notices[0].startswith("no-repeat-ngram could not be kept everywhere")


@pytest.mark.parametrize(
    ("spec", "pair"),
    [
        ('repetition-penalty+banned-texts(texts="\'b\'")+grammar(regex="ab")+dry', "banned-texts, grammar"),
        ('dry+allowed-tokens(tokens="\'c\'")+grammar(regex="[ab]+")', "allowed-tokens, grammar"),
        ("allowed-tokens(tokens=\"'c'\", end=false)+dry+no-repeat-ngram(size=1)", "allowed-tokens, no-repeat-ngram"),
    ],
)
def test_the_error_names_the_two_that_leave_nothing(stories: LanguageModel, spec: str, pair: str) -> None:
    with pytest.raises(neurogen.InvalidLogitsError, match=f"the processors {pair} together leave no token"):
        told(stories, spec, max_new_tokens=12)


def test_one_that_leaves_nothing_is_named_alone(stories: LanguageModel) -> None:
    class Nothing(Processor):
        name = "nothing"
        api_version = 1

        def process(self, logits: torch.Tensor, history: neurogen.History, memory: None) -> None:
            logits.fill_(-torch.inf)

    processors = [*neurogen.load_processors("dry"), Nothing(), *neurogen.load_processors("min-new-tokens(tokens=3)")]
    with pytest.raises(neurogen.InvalidLogitsError, match="the processors nothing together leave no token"):
        Runner(stories, neurogen.load_sampler("greedy"), processors=processors).generate("Once")


def test_beams_and_explanations_settle_it_alike(stories: LanguageModel) -> None:
    from neurogen.decoding.beam import BeamEngine, BeamSearch
    from neurogen.diagnosis.explain import explain

    spec = 'min-new-tokens(tokens=15)+grammar(regex="[1-4]{3}")'
    greedy = neurogen.load_sampler("greedy")
    options: dict[str, Any] = {"processors": neurogen.load_processors(spec), "max_new_tokens": 20, "chat": False}
    engine = BeamEngine(BeamSearch(stories, beams=3), greedy)
    for result in Runner(stories, greedy, engine=engine, n=3, **options).generate("Once"):
        assert re.fullmatch("[1-4]{3}", result.text)
        assert result.notices
    explanation = explain(stories, greedy, "Once", **options)
    assert re.fullmatch("[1-4]{3}", explanation.result.text)
    assert explanation.result.notices
    assert explanation.steps[-1].token_id in stories.eos_ids
    assert "NaN" not in to_json(explanation.to_json())
