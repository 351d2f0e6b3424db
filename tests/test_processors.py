"""Logits processors: each against transformers where that has it, else against its definition written out; then several
in order, and in batches whose rows come and go.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import neurogen
from neurogen import History, Param, ParameterError, PluginError, Processor, SamplerParams
from neurogen.models import LanguageModel
from neurogen.processor import Processing
from neurogen.processors import FIRST_PARTY
from neurogen.processors.counts import TokenCounts
from neurogen.processors.sequences import spellings
from neurogen.request import Request
from neurogen.runner import Prompt, Result, Runner
from neurogen.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

VOCAB = 40
EOS = 7
Reference = Callable[[Sequence[int], Tensor], Tensor]
"""(ids so far, logits [vocab]) -> what must come out."""


def one(spec: str) -> Processor:
    (processor,) = neurogen.load_processors(spec)
    return processor


class Letters(Tokenizer):
    """Tokens are the bytes 0 to vocab_size - 1; enough of a tokenizer for what a processor asks."""

    def __init__(self, vocab_size: int = VOCAB) -> None:
        self.vocab_size = vocab_size
        self.bos_id = None
        self.eos_ids = frozenset({EOS})
        self.special_ids = frozenset({EOS})
        self.has_chat_template = False

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        return list(text.encode())

    def token_text(self, token: int) -> str:
        return chr(token)

    def encode_chat(self, messages: Any) -> list[int]:
        raise NotImplementedError

    def save(self, folder: Any) -> None:
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


def sequence(seed: int, length: int = 60, kinds: int = 6) -> list[int]:
    """Tokens out of few, so that much is repeated."""
    return torch.randint(0, kinds, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def check(processor: Processor, reference: Reference, ids: Sequence[int], prompt: int, vocab: int = VOCAB) -> int:
    """Hold a processor against a reference at every step of a sequence.

    Returns:
        how many steps it changed.
    """
    processor.prepare(Letters(), vocab)
    request = Request(tuple(ids[:prompt]), 1000, seed=0, stop_ids=frozenset({EOS}), processors=[processor])
    processing = Processing(request)
    changed = 0
    for length in range(prompt, len(ids) + 1):
        logits = 3 * torch.randn(vocab, generator=torch.Generator().manual_seed(length))
        logits[3] = -torch.inf
        expected = reference(ids[:length], logits.clone())
        got = logits.clone()
        processing.process(got)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
        changed += not got.equal(logits)
        if length < len(ids):
            processing.accept(ids[length])
    return changed


def of_transformers(processor: Any, start: int = 0, last: int | None = None) -> Reference:
    """One of transformers' processors, which sees the ids from `start` on, or the last ones."""

    def reference(ids: Sequence[int], logits: Tensor) -> Tensor:
        seen = list(ids[start:])
        seen = seen if last is None else seen[max(0, len(seen) - last) :]
        return processor(torch.tensor([seen], dtype=torch.int64), logits[None])[0]

    return reference


# Against transformers


@pytest.mark.parametrize("penalty", [1.3, 0.7])
@pytest.mark.parametrize("prompt", [1, 20])
def test_repetition_penalty_is_that_of_transformers(penalty: float, prompt: int) -> None:
    theirs = of_transformers(transformers.RepetitionPenaltyLogitsProcessor(penalty))
    assert check(one(f"repetition-penalty(penalty={penalty})"), theirs, sequence(1, kinds=30), prompt) > 30


@pytest.mark.parametrize("last_n", [1, 5, 64])
def test_repetition_penalty_looks_at_a_window(last_n: int) -> None:
    theirs = of_transformers(transformers.RepetitionPenaltyLogitsProcessor(1.5), last=last_n)
    processor = one(f"repetition-penalty(penalty=1.5, last_n={last_n})")
    assert check(processor, theirs, sequence(2, kinds=30), prompt=10) > 30


def test_repetition_penalty_can_leave_the_prompt_out() -> None:
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.5)
    processor = one("repetition-penalty(penalty=1.5, prompt=false, last_n=9)")
    assert check(processor, of_transformers(theirs, start=15, last=9), sequence(3, kinds=30), prompt=15) > 30


def test_repetition_penalty_of_no_token_or_by_1_changes_nothing() -> None:
    for params in ("last_n=0", "penalty=1"):
        assert check(one(f"repetition-penalty({params})"), lambda ids, logits: logits, sequence(4), prompt=5) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt", [1, 30])
def test_no_repeat_ngram_is_that_of_transformers(size: int, prompt: int) -> None:
    theirs = of_transformers(transformers.NoRepeatNGramLogitsProcessor(size))
    changed = check(one(f"no-repeat-ngram(size={size})"), theirs, sequence(5, length=90, kinds=3), prompt)
    assert changed > 15


@pytest.mark.parametrize("tokens", [0, 1, 12])
def test_min_new_tokens_is_that_of_transformers(tokens: int) -> None:
    theirs = transformers.MinNewTokensLengthLogitsProcessor(10, tokens, EOS)
    changed = check(one(f"min-new-tokens(tokens={tokens})"), of_transformers(theirs), sequence(6), prompt=10)
    assert changed == tokens


WORDS = [[5], [1, 2], [2, 1, 3], [4, 4], [0]]


def test_banned_tokens_are_those_of_transformers() -> None:
    theirs = transformers.NoBadWordsLogitsProcessor(WORDS, eos_token_id=EOS)
    spelt = ", ".join(str(ids[0]) if len(ids) == 1 else '"' + "".join(map(_escaped, ids)) + '"' for ids in WORDS)
    assert check(made("banned-tokens", tokens=spelt), of_transformers(theirs), sequence(7), prompt=4) == 57


def test_logit_bias_is_the_sequence_bias_of_transformers() -> None:
    biases = [-1.5, 2.25, 3.0, -2.0, 0.5]
    theirs = transformers.SequenceBiasLogitsProcessor([[ids, bias] for ids, bias in zip(WORDS, biases, strict=True)])
    keys = (str(ids[0]) if len(ids) == 1 else '"' + "".join(map(_escaped, ids)) + '"' for ids in WORDS)
    spelt = ",".join(f"{key}:{bias}" for key, bias in zip(keys, biases, strict=True))
    assert check(made("logit-bias", bias=spelt), of_transformers(theirs), sequence(8), prompt=4) == 57


def _escaped(token: int) -> str:
    return f"\\u{token:04x}"


def made(name: str, **params: Any) -> Processor:
    """A processor from values, as the command line makes it; texts are meant as they are, not also behind a space."""
    processor = neurogen.Registry(disabled=()).load_processor(name, **params)

    class Exact(Letters):
        def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
            return super().encode(text.removeprefix("x").removeprefix(" "))

    prepare = processor.prepare
    processor.prepare = lambda tokenizer, vocab: prepare(Exact(), vocab)  # type: ignore[method-assign]
    return processor


@pytest.mark.parametrize("text", ["Lily", " Lily", "the park", "\n", "é", "Tom's", "."])
def test_words_of_a_real_tokenizer_are_banned_as_in_transformers(stories: LanguageModel, text: str) -> None:
    """The word, in every spelling that the tokenizer has for it, behind contexts that end with its beginning."""
    tokenizer, vocab = stories.tokenizer, stories.vocab_size
    words = spellings(text, tokenizer)
    theirs = transformers.NoBadWordsLogitsProcessor(list(map(list, words)), eos_token_id=list(tokenizer.eos_ids))
    processor = neurogen.Registry(disabled=()).load_processor(
        "banned-tokens", tokens=f"'{text}'".replace("m's", "m\\'s")
    )
    processor.prepare(tokenizer, vocab)
    for word in words:
        assert tokenizer.decode(list(word)).strip() == text.strip()
        for begin in range(len(word)):
            ids = [1, 5, *word[:begin]]
            logits = torch.zeros(vocab)
            Processing(Request(tuple(ids), 5, seed=0, processors=[processor])).process(logits)
            assert logits.equal(theirs(torch.tensor([ids]), torch.zeros(1, vocab))[0])
        assert logits[word[-1]] == -torch.inf  # behind all its tokens but the last


def test_a_banned_text_does_not_come(stories: LanguageModel) -> None:
    """Greedy decoding would say " Lily" behind this prompt."""
    prompt = "Once upon a time, there was a little girl named"
    greedy = neurogen.load_sampler("greedy")
    (plain,) = Runner(stories, greedy, max_new_tokens=30).generate(prompt)
    assert "Lily" in plain.text
    banned = neurogen.load_processors("banned-tokens(tokens=\"'Lily', 'Lucy'\")")
    (result,) = Runner(stories, greedy, max_new_tokens=30, processors=banned).generate(prompt)
    assert "Lily" not in result.text
    assert "Lucy" not in result.text


# Against definitions


PIECES = [b"", b"a", b"b", b"ab", b"ba", b"aab", b"abab", b"\xc3", b"\xa9", b"\xc3\xa9a", b"bb", b"aa", b"babab"]


class OfPieces(Letters):
    """Tokens with these bytes."""

    def token_bytes(self, token: int) -> bytes:
        return PIECES[token]


@pytest.mark.parametrize("texts", [["ab"], ["aba"], ["aa"], ["abab", "é"], ["b"], ["aaaa", "bbb", "abb"]])
@pytest.mark.parametrize("prompt", [1, 9])
@pytest.mark.parametrize("seed", range(3))
def test_a_banned_text_is_never_completed_whatever_spells_it(texts: list[str], prompt: int, seed: int) -> None:
    """Banned is every token behind which a text would end within the token's own bytes, wherever it began."""

    def reference(ids: Sequence[int], logits: Tensor) -> Tensor:
        before = b"".join(PIECES[token] for token in ids)
        for token, piece in enumerate(PIECES):
            for word in map(str.encode, texts):
                if (before + piece).find(word, max(0, len(before) - len(word) + 1)) >= 0:
                    logits[token] = -torch.inf
        return logits

    processor = neurogen.Registry(disabled=()).load_processor("banned-texts", texts=", ".join(f"'{t}'" for t in texts))
    prepare = processor.prepare
    processor.prepare = lambda _, vocab: prepare(OfPieces(len(PIECES)), vocab)  # type: ignore[method-assign]
    ids = sequence(60 + seed, length=60, kinds=len(PIECES))
    assert check(processor, reference, ids, prompt, vocab=len(PIECES)) > (61 - prompt) // 2


def test_banned_texts_do_not_come_from_small_tokens_nor_in_large_ones(tiny: LanguageModel) -> None:
    """A random model of which most tokens are bytes says "in" and many other things."""
    options: dict[str, Any] = {"max_new_tokens": 40, "n": 12, "seed": 4}
    free = Runner(tiny, neurogen.load_sampler("topk", k=0), **options).generate("once")
    texts = ["in", "e", " a"]
    assert all(any(text in result.text for result in free) for text in texts)
    banned = neurogen.load_processors("banned-texts(texts=\"'in', 'e', ' a'\")")
    for result in Runner(tiny, neurogen.load_sampler("topk", k=0), processors=banned, **options).generate("once"):
        assert not any(text in result.text for text in texts)
        assert result.new_tokens == 40 or result.finish_reason == "eos"


def test_presence_and_frequency_count_new_tokens_alone() -> None:
    """logits 1, 2, 3, 4; prompt 0 0; new 1 3 3: presence takes 0.5 from 1 and 3, frequency 0.5 and 2 * 0.5."""
    history = [0, 0, 1, 3, 3]
    for name, expected in (("presence", [1, 1.5, 3, 3.5]), ("frequency", [1, 1.5, 3, 3.0])):
        processing = Processing(Request((0, 0), 9, seed=0, processors=[one(f"{name}-penalty(penalty=0.5)")]))
        for token in history[2:]:
            processing.accept(token)
        logits = torch.tensor([1.0, 2, 3, 4])
        processing.process(logits)
        assert logits.tolist() == expected


@pytest.mark.parametrize("name", ["presence", "frequency"])
@pytest.mark.parametrize("penalty", [1.5, -0.25])
def test_penalties_of_openai_are_their_formula(name: str, penalty: float) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, c counting tokens that were sampled."""

    def reference(ids: Sequence[int], logits: Tensor) -> Tensor:
        for token, count in Counter(ids[20:]).items():
            logits[token] -= penalty * (count if name == "frequency" else 1)
        return logits

    assert check(one(f"{name}-penalty(penalty={penalty})"), reference, sequence(9, kinds=12), prompt=20) == 40


def test_allowed_tokens_are_the_only_ones_beside_the_end() -> None:
    def reference(ids: Sequence[int], logits: Tensor) -> Tensor:
        keep = torch.tensor([5, 6, EOS])
        return torch.full_like(logits, -torch.inf).index_copy(0, keep, logits[keep])

    def without_end(ids: Sequence[int], logits: Tensor) -> Tensor:
        return reference(ids, logits).index_fill(0, torch.tensor(EOS), -torch.inf)

    assert check(one('allowed-tokens(tokens="5, 6")'), reference, sequence(10), prompt=3) == 58
    assert check(one('allowed-tokens(tokens="5, 6", end=false)'), without_end, sequence(10), prompt=3) == 58


def dry(
    ids: Sequence[int], breakers: Sequence[Sequence[int]], allowed: int, multiplier: float, base: float, last_n: int
) -> dict[int, float]:
    """The definition: token -> penalty."""
    if last_n >= 0:
        ids = list(ids)[max(0, len(ids) - last_n) :]
    found = [
        (at, at + len(one))
        for one in breakers
        for at in range(len(ids))
        if tuple(ids[at : at + len(one)]) == tuple(one)
    ]
    end = max(found)[1] if found else 0  # the one that begins last, and of those the longest
    longest: dict[int, int] = {}
    for place in range(len(ids) - 1):
        length = 0
        while length <= place and ids[place - length] == ids[len(ids) - 1 - length]:
            length += 1
        length = min(length, len(ids) - end)
        following = ids[place + 1]
        if length >= allowed and (following,) not in map(tuple, breakers):
            longest[following] = max(longest.get(following, 0), length)
    return {token: multiplier * base ** (length - allowed) for token, length in longest.items()}


def dry_of_the_web_ui(
    ids: Sequence[int], breakers: Sequence[int], allowed: int, multiplier: float, base: float
) -> dict[int, float]:
    """As its inventor describes it in the pull request, for breakers of one token: how far a match reaches back from
    each place where the last token stands, until a breaker or the beginning."""
    penalties: dict[int, float] = {}
    if ids[-1] in breakers:
        return penalties
    for place in [i for i, token in enumerate(ids[:-1]) if token == ids[-1]]:
        following, length = ids[place + 1], 1
        while place >= length and ids[place - length] == ids[-1 - length] and ids[-1 - length] not in breakers:
            length += 1
        if following not in breakers and length >= allowed:
            penalties[following] = max(penalties.get(following, 0), multiplier * base ** (length - allowed))
    return penalties


def dry_reference(penalties: Callable[[Sequence[int]], dict[int, float]]) -> Reference:
    def reference(ids: Sequence[int], logits: Tensor) -> Tensor:
        for token, penalty in penalties(ids).items():
            logits[token] -= penalty
        return logits

    return reference


@pytest.mark.parametrize("allowed", [1, 2, 4])
@pytest.mark.parametrize("prompt", [1, 35])
@pytest.mark.parametrize("seed", range(3))
def test_dry_with_breakers_of_one_token_is_the_pull_request(allowed: int, prompt: int, seed: int) -> None:
    ids = sequence(20 + seed, length=80, kinds=3)
    definition = dry_reference(lambda ids: dry_of_the_web_ui(ids, [2], allowed, 0.8, 1.75))
    spec = f'dry(multiplier=0.8, base=1.75, allowed_length={allowed}, sequence_breakers="2")'
    assert check(one(spec), definition, ids, prompt) > 1


@pytest.mark.parametrize("last_n", [-1, 1, 7, 30])
@pytest.mark.parametrize("prompt", [1, 35])
@pytest.mark.parametrize("seed", range(4))
def test_dry_is_its_definition_with_long_breakers_and_a_window(last_n: int, prompt: int, seed: int) -> None:
    ids = sequence(30 + seed, length=90, kinds=2 + seed)
    breakers = [[1, 1, 0], [1, 0], [3]]
    definition = dry_reference(lambda ids: dry(ids, breakers, 2, 0.5, 1.5, last_n))
    processor = made(
        "dry", multiplier=0.5, base=1.5, last_n=last_n, sequence_breakers=r'"\u0001\u0001\u0000","\u0001\u0000",3'
    )
    changed = check(processor, definition, ids, prompt)
    assert (changed > 1) == (last_n != 1)


def test_dry_does_not_overflow_in_a_long_loop() -> None:
    processor = one('dry(multiplier=1, base=4, sequence_breakers="30")')
    processor.prepare(Letters(), VOCAB)
    processing = Processing(Request((1, 2) * 300, 9, seed=0, processors=[processor]))
    logits = torch.zeros(VOCAB)
    processing.process(logits)
    assert torch.isfinite(logits).all()
    assert logits[1] < -1e37
    assert (logits[[0, *range(2, VOCAB)]] == 0).all()


def test_dry_breakers_are_all_tokens_that_hold_their_text(stories: LanguageModel) -> None:
    """Behind a repetition that a line break or a quotation mark ends, nothing is penalised, whatever token holds it."""
    tokenizer, vocab = stories.tokenizer, stories.vocab_size
    processor = one("dry")
    processor.prepare(tokenizer, vocab)
    held = [
        token
        for token in range(vocab)
        if {b"\n", b":", b'"', b"*"} & {bytes([b]) for b in tokenizer.token_bytes(token)}
    ]
    assert len(held) >= 4
    phrase = tokenizer.encode("She saw a big red ball", add_bos=False)
    for breaker in held:
        logits = torch.zeros(vocab)
        Processing(Request((*phrase, 9, *phrase, breaker), 5, seed=0, processors=[processor])).process(logits)
        assert (logits == 0).all()
    logits = torch.zeros(vocab)
    Processing(Request((*phrase, 9, *phrase), 5, seed=0, processors=[processor])).process(logits)
    assert logits.nonzero().flatten().tolist() == [9]
    assert logits[9].item() == pytest.approx(-0.8 * 1.75 ** (len(phrase) - 2))


def test_dry_off_changes_nothing() -> None:
    for params in ("multiplier=0", "last_n=0"):
        assert check(one(f'dry({params}, sequence_breakers="30")'), lambda ids, logits: logits, sequence(40), 5) == 0


@pytest.mark.parametrize("last_n", [-1, 0, 1, 3, 50])
def test_counts_are_those_of_the_window(last_n: int) -> None:
    tokens = sequence(50, length=300, kinds=90)
    counts = TokenCounts(tokens[:100], last_n)
    for length in range(101, 301):
        counts.add(tokens[length - 1])
        window = tokens[:length] if last_n < 0 else tokens[max(0, length - last_n) : length]
        ids, numbers = counts.tensors(80, torch.device("cpu"))
        found = dict(zip(ids.tolist(), numbers.tolist(), strict=True))
        assert found == {token: count for token, count in Counter(window).items() if token < 80}


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


ALL = (
    "repetition-penalty(penalty=1.1, last_n=20)+presence-penalty(penalty=0.3)+frequency-penalty(penalty=0.2)+dry"
    "+logit-bias(bias=\"' ball':1,'Lily':-2\")+no-repeat-ngram(size=4)+banned-tokens(tokens=\"'Tom', 'big red'\")"
    "+min-new-tokens(tokens=20)"
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
    engine = stories.engine(greedy, batch_size=3)
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
