"""Each logits processor against transformers where that has it, else against its definition written out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from processor_helpers import EOS, VOCAB, Letters, made, one
from torch import Tensor

import neurogen
from neurogen import Processor
from neurogen.decoding.processing import Processing
from neurogen.decoding.request import Request
from neurogen.models.language_model import LanguageModel
from neurogen.processors.counts import TokenCounts
from neurogen.processors.sequences import spellings
from neurogen.text.runner import Runner

transformers = pytest.importorskip("transformers")

Reference = Callable[[Sequence[int], Tensor], Tensor]
"""(ids so far, logits [vocab]) -> what must come out."""


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
