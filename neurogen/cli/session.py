"""What `neurogen run` has been asked for, and what has become of it: options, prompts, seed, results, failures.

Refuses what can be refused before a model is loaded. Loads nothing and runs nothing: that is for `execution`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import is_terminal, random_seed, tell
from neurogen.cli.draft_options import draft_identity
from neurogen.contract.parameters import INT64, is_whole
from neurogen.errors import DataError, ParameterError
from neurogen.registry.registry import load_processors
from neurogen.text.generation import DEFAULT_NEW_TOKENS, Failure, Prompt, Result, RunOptions
from neurogen.text.hints import sample_hints, stop_hints
from neurogen.text.prompts import read_prompts, read_text

if TYPE_CHECKING:
    from neurogen.cli.prompt_sharing import Ranks
    from neurogen.cli.results import Key, ResultsFile
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler
    from neurogen.decoding.beam_settings import BeamSettings

__all__ = ["Arguments", "Session", "prompts_of", "seed_of"]

OPTIONAL = ("stop_ids", "best_of", "beam", "draft", "parse_special")
"""Settings that a line of a results file has only where they were given."""


@dataclass(frozen=True)
class Arguments:
    """The options of `neurogen run`, save the sampler and its own."""

    model: str
    prompt: str | None
    prompts: str | None
    n: int
    max_new_tokens: int | None
    seed: int | None
    stop: tuple[str, ...]
    stop_id: tuple[int, ...]
    logprobs: int | None
    device: str
    dtype: str
    chat: bool | None
    stream: bool | None
    as_json: bool
    output: str | None
    record: str | None
    batch_size: int
    quiet: bool
    engine: str = "torch"
    engine_option: dict[str, str] | None = None
    threads: int | None = None
    best_of: int = 1
    beam: BeamSettings | None = None
    draft: str | None = None
    draft_tokens: int | None = None
    parse_special: bool = False

    @property
    def drawn(self) -> int:
        """Sequences drawn for each prompt: a seed each."""
        return self.n * self.best_of

    @property
    def shows_progress(self) -> bool:
        """Whether somebody sees on stderr how far it is."""
        return is_terminal(sys.stderr) and not self.quiet


@dataclass
class Session:
    """One run: what there is to do, and what has become of it.

    Attributes:
        arguments, sampler, processors: what was asked for.
        prompts: line -> prompt.
        source: the file they are from, or None where there is one prompt that is no line of a file.
        broken: how many lines hold no prompt.
        seed: the run's.
        file: where results go, beside or instead of stdout.
        done: keys that an earlier run has left in `file`.
        todo: the keys that this run is to add.
        finished: how many of them it has added.
        failed: keys whose prompt could not be run, or whose sequence could not be finished.
        ranks: this process's share of the prompts; None where it is the only one.
        told: (line, message) of what has failed; what is wrong with all samples of a line is said once.
    """

    arguments: Arguments
    sampler: Sampler
    processors: Sequence[Processor]
    prompts: dict[int, Prompt]
    source: str | None
    broken: int
    seed: int
    file: ResultsFile | None
    done: set[Key] = field(default_factory=set)
    todo: list[Key] = field(default_factory=list)
    finished: int = 0
    failed: set[Key] = field(default_factory=set)
    ranks: Ranks | None = None
    told: set[tuple[int, str]] = field(default_factory=set)

    def resume(self, done: set[Key]) -> None:
        """Take over the keys that an earlier run has left; what it has not is to do."""
        self.done = done
        keys = ((index, sample) for index in self.mine() for sample in range(self.arguments.n))
        self.todo = [key for key in keys if key not in done]

    def mine(self) -> list[int]:
        """The lines of this process, save those that have failed altogether."""
        return [
            index
            for index in self.prompts
            if not self.has_failed(index) and (self.ranks is None or self.ranks.mine(index))
        ]

    def has_failed(self, index: int) -> bool:
        """Whether none of a line's samples could be finished."""
        return all((index, sample) in self.failed for sample in range(self.arguments.n))

    def tell(self, index: int, message: str) -> None:
        """Say something about a line; of several processes only the first says it, for all."""
        if self.ranks is None or self.ranks.rank == 0:
            tell(message)
        else:
            self.ranks.told.append((index, message))

    @property
    def remarks(self) -> list[str]:
        """What the run's processors say of themselves, which is told once."""
        return [remark for processor in self.processors for remark in processor.remarks]

    def say(self, message: str) -> None:
        """Say something that --quiet leaves out."""
        if not self.arguments.quiet:
            tell(message)

    def fail(self, failure: Failure) -> None:
        """Note that a line, or one of its samples, could not be run, and say why.

        Raises:
            NeurogenError: the only prompt could not be, or its only sample.
        """
        index, sample, n = failure.index, failure.sample, self.arguments.n
        if self.source is None and (sample is None or n == 1):
            raise failure.error
        samples = range(n) if sample is None else [sample]
        self.failed.update((index, one) for one in samples)
        if (index, str(failure.error)) not in self.told:
            self.told.add((index, str(failure.error)))
            self.tell(index, f"{self.named(index, sample)}: {failure.error.reason}")

    def named(self, index: int, sample: int | None = None) -> str:
        """What a user knows a line or a sequence by."""
        line = [] if self.source is None else [f"{self.source}, line {index + 1}"]
        return ", ".join(line if sample is None or self.arguments.n == 1 else [*line, f"sample {sample + 1}"])

    @property
    def stops(self) -> list[str]:
        """The stop strings of the run and of its prompts."""
        return [*self.arguments.stop, *(stop for prompt in self.prompts.values() for stop in prompt.stop or ())]

    def tell_hints(self) -> None:
        """Say what was asked for without effect, or probably otherwise than it was meant."""
        if self.ranks is not None and self.ranks.rank > 0:
            return
        hints = [*stop_hints(self.stops)]
        if self.arguments.beam is None and not any(prompt.params for prompt in self.prompts.values()):
            hints += sample_hints(self.sampler, self.arguments.n, self.arguments.best_of)
        for hint in hints:
            tell(hint)

    def check_seeds(self) -> None:
        """Let a line fail whose own seed is so large that a later sample's would not fit 64 bits.

        Raises:
            click.UsageError: the run's seed is.
            ParameterError: that of the only prompt is.
        """
        n = self.arguments.drawn
        shared = [index for index, prompt in self.prompts.items() if prompt.seed is None]
        largest = self.seed + max(shared, default=0) * n + n - 1
        if shared and not is_whole(largest):
            raise click.UsageError(
                f"--seed {self.seed} is too large: the seeds of this run go up to {largest}, and the largest of 64 "
                f"bits is {INT64[-1]}. Give a smaller one.",
                click.get_current_context(),
            )
        mine = set(self.mine())
        for index, prompt in self.prompts.items():
            if index in mine and prompt.seed is not None and not is_whole(prompt.seed + n - 1):
                problem = (
                    f"'seed' is {prompt.seed}, and the last of {n} samples would have {prompt.seed + n - 1}; the "
                    f"largest of 64 bits is {INT64[-1]}. Give a smaller one."
                )
                self.fail(Failure(index, ParameterError(problem, "seed")))

    def options(self) -> RunOptions:
        """What was asked for, as the runner takes it."""
        arguments = self.arguments
        return RunOptions(
            n=arguments.n,
            max_new_tokens=arguments.max_new_tokens,
            seed=self.seed,
            stop=arguments.stop,
            stop_ids=arguments.stop_id,
            logprobs=arguments.logprobs,
            chat=arguments.chat,
            batch_size=arguments.batch_size,
            processors=self.processors,
            parse_special=arguments.parse_special,
        )

    def queue(self) -> Iterable[Prompt]:
        """The prompts as the runner wants them: it raises for the only one of a list, and goes on after others."""
        prompts = [self.prompts[index] for index in self.mine()]
        return prompts if self.source is None else iter(prompts)

    def identity(self, key: Key) -> dict[str, Any] | None:
        """What the result of a key has in this run and in none that differs; None for a key that is not of this run."""
        index, sample = key
        prompt = self.prompts.get(index)
        if prompt is None or sample not in range(self.arguments.n):
            return None
        own = prompt.seed
        first = own if own is not None else self.seed + index * self.arguments.n
        seed = {"seed": first + sample} if self.arguments.best_of == 1 else {}
        return {
            "prompt": prompt.text,
            "sampler": self.sampler.name,
            "params": self.sampler.params.model_dump() | dict(prompt.params),
            **seed,
            "processors": self._processors_of(prompt),
            "run": dict.fromkeys(OPTIONAL) | self._settings(prompt),
        }

    def record(self, result: Result) -> Mapping[str, Any]:
        """A result as a line of the file: what `--json` prints, and the settings of the run."""
        key = {"index": result.index, "sample": result.sample}  # first, whatever the order of a result
        return {**key, **result.to_json(), "run": self._settings(self.prompts[result.index])}

    def _processors_of(self, prompt: Prompt) -> list[str] | None:
        """How a result shows them; None where there is none."""
        if prompt.processors is None:
            return list(map(repr, self.processors)) or None
        return list(map(repr, load_processors(prompt.processors))) if prompt.processors else None

    def _settings(self, prompt: Prompt) -> dict[str, Any]:
        arguments, draft = self.arguments, self.arguments.draft
        stop_ids = list(arguments.stop_id if prompt.stop_ids is None else prompt.stop_ids)
        return {
            "model": arguments.model,
            "plugin": self.sampler.origin,
            "seed": self.seed,
            "n": arguments.n,
            "max_new_tokens": next(
                (one for one in (prompt.max_new_tokens, arguments.max_new_tokens) if one is not None),
                DEFAULT_NEW_TOKENS,
            ),
            "stop": list(arguments.stop if prompt.stop is None else prompt.stop),
            "logprobs": arguments.logprobs,
            "chat": arguments.chat,
            "dtype": arguments.dtype,
            "engine": arguments.engine,
            **({"parse_special": True} if arguments.parse_special else {}),
            **({"stop_ids": stop_ids} if stop_ids else {}),
            **({"best_of": arguments.best_of} if arguments.best_of > 1 else {}),
            **({"beam": asdict(arguments.beam)} if arguments.beam is not None else {}),
            **({"draft": draft_identity(draft, arguments.draft_tokens)} if draft is not None else {}),
        }


def prompts_of(
    arguments: Arguments, sampler: Sampler, *, told: bool = True
) -> tuple[dict[int, Prompt], str | None, int]:
    """Read the prompts.

    Args:
        arguments, sampler: what was asked for.
        told: say which lines hold none.

    Returns:
        the prompts by line, the file that they are from, and how many lines hold none; see `Session`.

    Raises:
        click.UsageError: there is none.
        DataError: they cannot be read.
    """
    if arguments.prompts is None:
        text = arguments.prompt if arguments.prompt is not None else _standard_input()
        return {0: Prompt(0, text)}, None, 0
    source = "standard input" if arguments.prompts == "-" else arguments.prompts
    prompts, broken = read_prompts(arguments.prompts, sampler, told=tell if told else None)
    for line in broken if told else ():
        tell(line.sentence)
    if not prompts:
        raise DataError(f"None of the lines of {source} holds a prompt; what is wrong with them is said above.")
    return {prompt.index: prompt for prompt in prompts}, source, len(broken)


def _standard_input() -> str:
    if is_terminal(sys.stdin):
        raise click.UsageError(
            "There is no prompt. Give --prompt TEXT, --prompts FILE.jsonl, or text on standard input.",
            click.get_current_context(),
        )
    return read_text()


def seed_of(arguments: Arguments, file: ResultsFile | None) -> int:
    """The seed asked for, or that of the run which `file` goes on with, or one at random."""
    if arguments.seed is not None:
        return arguments.seed
    begun = file.seed if file is not None else None
    return random_seed() if begun is None else begun
