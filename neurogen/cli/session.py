"""One run of `neurogen run`: reads prompts, loads the model, passes each event to file and screen, counts failures.

Whatever can be refused is refused before the model is loaded. `runners` makes the model and its runner, `output` shows
the results, `results` writes their file, and `ranks` connects several processes.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.arguments import OPTIONAL_SETTINGS, Arguments
from neurogen.cli.common import is_terminal, random_seed, tell
from neurogen.cli.model_options import tell_of_special, tell_unused_gpu
from neurogen.cli.output import Output, Progress, Summary, count_of, display
from neurogen.cli.ranks import Ranks, launched
from neurogen.cli.results import Key, ResultsFile
from neurogen.contract.parameters import INT64, is_whole
from neurogen.errors import DataError, ParameterError
from neurogen.registry.registry import load_processors
from neurogen.text.generation import Event, Failure, Prompt, Result, RunOptions, TextDelta
from neurogen.text.hints import sample_hints, stop_hints, tokenizer_stop_hints
from neurogen.text.prompts import read_prompts, read_text

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler

__all__ = ["Session", "run_session"]

EXIT_FAILURES = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM has come."""


def run_session(arguments: Arguments, sampler: Sampler, processors: Sequence[Processor] = ()) -> int:
    """Do the run, or this process's share of it.

    Returns:
        the exit code.

    Raises:
        click.UsageError: options do not go together.
        NeurogenError: nothing can be run, or the run cannot go on.
    """
    ranks = launched(vars(arguments), click.get_current_context(silent=True))
    with ExitStack() as stack:
        session = _begin(arguments, sampler, processors, ranks, stack)
        stack.enter_context(_sigterm_raises())
        try:
            options = session.options()  # what contradicts itself shows before a model is loaded
            if session.todo:
                from neurogen.cli import runners  # loads torch

                session.tell_hints()
                model = runners.load_model_for_run(session.arguments, sampler)
                session.tell_hints_of(model)
                prompts = session.own_prompts()
                with runners.recording(session.arguments, model, sampler, options, prompts, session.done) as observer:
                    engine = runners.make_engine(model, session.arguments, sampler, observer)
                    runner = runners.make_runner(model, engine, session.arguments, sampler, options)
                    queue = prompts if session.source is None else iter(prompts)  # an error ends the run for one alone
                    session.summary.start()
                    with display(session.arguments, session.todo, len(session.done)) as (output, progress):
                        for event in runner.run(queue, skip=lambda *key: key in session.done):
                            session.take(event, output, progress)
                session.say_summary(runners.describe_draft(engine) if arguments.draft is not None else "")
            session.merge()
        except (KeyboardInterrupt, Terminated) as stop:
            session.tell_of_line(0, session.interruption())
            return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
    return session.report_failures()


def _begin(
    arguments: Arguments, sampler: Sampler, processors: Sequence[Processor], ranks: Ranks | None, stack: ExitStack
) -> Session:
    """Read the prompts, and what an earlier run has left in the results file; `stack` closes what is opened."""
    first = ranks is None or ranks.rank == 0
    arguments = replace(arguments, quiet=arguments.quiet or not first)
    prompts, source, broken = _prompts_of(arguments, sampler, told=first)
    session = Session(arguments, sampler, processors, prompts, source, broken, ranks=ranks)
    if ranks is not None:
        stack.enter_context(ranks.joined())
    rank = None if ranks is None else ranks.rank
    if arguments.output is not None and first:
        session.file = stack.enter_context(ResultsFile(arguments.output, rank=rank))
    session.set_seed()
    done = session.file.resume(session.identity) if session.file is not None else set()
    if ranks is not None:
        done = ranks.from_first(done)
        assert arguments.output is not None
        if not first:  # rank 0 has made sure by now that the file is of this run
            session.file = stack.enter_context(ResultsFile(arguments.output, rank=rank))
    session.set_todo(done)
    return session


def _prompts_of(arguments: Arguments, sampler: Sampler, *, told: bool) -> tuple[dict[int, Prompt], str | None, int]:
    """Read the prompts.

    Args:
        told: say which lines hold none.

    Returns:
        the prompts by line, the file that they are from, and how many lines hold none; see `Session`.

    Raises:
        click.UsageError: there is no prompt.
        DataError: they cannot be read.
    """
    if arguments.prompts is None:
        if arguments.prompt is None and is_terminal(sys.stdin):
            raise click.UsageError(
                "There is no prompt. Give --prompt TEXT, --prompts FILE.jsonl, or text on standard input.",
                click.get_current_context(),
            )
        return {0: Prompt(0, read_text() if arguments.prompt is None else arguments.prompt)}, None, 0
    source = "standard input" if arguments.prompts == "-" else arguments.prompts
    prompts, broken = read_prompts(arguments.prompts, sampler, told=tell if told else None)
    for line in broken if told else ():
        tell(line.sentence)
    if not prompts:
        raise DataError(f"None of the lines of {source} holds a prompt; what is wrong with them is said above.")
    return {prompt.index: prompt for prompt in prompts}, source, len(broken)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that files are closed and the last line is whole."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not in the main thread, where signals do not come
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class Session:
    """The work of a run and its progress.

    Attributes:
        arguments, sampler, processors: what was asked for.
        prompts: line -> prompt.
        source: the file they are from, or None where there is one prompt that is no line of a file.
        broken: how many lines hold no prompt.
        ranks: the processes that share the prompts; None where there is one.
        seed: the run's.
        file: where results go, beside or instead of stdout.
        done: keys of this process that an earlier run has left in `file`.
        todo: the keys that this process is to add.
        failed: keys whose prompt could not be run, or whose sequence could not be finished.
        summary: counts what is finished.
        told: (line, message) of what has failed; what is wrong with all samples of a line is said once.
        for_first: what rank 0 is to say for this process, as (line, message).
    """

    arguments: Arguments
    sampler: Sampler
    processors: Sequence[Processor]
    prompts: dict[int, Prompt]
    source: str | None
    broken: int
    ranks: Ranks | None = None
    seed: int = 0
    file: ResultsFile | None = None
    done: set[Key] = field(default_factory=set)
    todo: list[Key] = field(default_factory=list)
    failed: set[Key] = field(default_factory=set)
    summary: Summary = field(default_factory=Summary)
    told: set[tuple[int, str]] = field(default_factory=set)
    for_first: list[tuple[int, str]] = field(default_factory=list)

    @property
    def speaks(self) -> bool:
        """Whether this process prints messages: of several processes, only the first does."""
        return self.ranks is None or self.ranks.rank == 0

    # The work of the run.

    def set_seed(self) -> None:
        """Take the seed asked for, or that of the run which `file` goes on with, or one at random.

        A line whose own seed is so large that a later sample's would not fit 64 bits fails.

        Raises:
            click.UsageError: the run's seed is so large.
            ParameterError: that of the only prompt is.
        """
        begun = self.file.seed if self.file is not None else None
        known = [seed for seed in (self.arguments.seed, begun) if seed is not None]
        self.seed = known[0] if known else random_seed()
        n = self.arguments.n * self.arguments.best_of
        shared = [index for index, prompt in self.prompts.items() if prompt.seed is None]
        largest = self.seed + max(shared, default=0) * n + n - 1
        if shared and not is_whole(largest):
            raise click.UsageError(
                f"--seed {self.seed} is too large: the seeds of this run go up to {largest}, and the largest of 64 "
                f"bits is {INT64[-1]}. Give a smaller one.",
                click.get_current_context(),
            )
        for prompt in self.own_prompts():
            seed = prompt.seed
            if seed is not None and not is_whole(seed + n - 1):
                problem = (
                    f"'seed' is {seed}, and the last of {n} samples would have {seed + n - 1}; the largest of 64 bits "
                    f"is {INT64[-1]}. Give a smaller one."
                )
                self.fail(Failure(prompt.index, ParameterError(problem, "seed")))

    def set_todo(self, done: set[Key]) -> None:
        """Take over the keys that an earlier run has left; what it has not is to do."""
        self.done = {key for key in done if self.ranks is None or self.ranks.mine(key[0])}
        keys = ((prompt.index, sample) for prompt in self.own_prompts() for sample in range(self.arguments.n))
        self.todo = [key for key in keys if key not in done]
        output, there = self.arguments.output, len(done)
        if done and self.ranks is not None:
            self.tell_unless_quiet(f"Going on with {output}.")
        elif done and self.todo:
            self.tell_unless_quiet(f"Going on with {output}: {there} of {there + len(self.todo)} results are there.")
        elif not self.todo and not self.failed:
            self.tell_unless_quiet(f"{output} holds all {count_of(there, 'result')} already: there is nothing to do.")

    def own_prompts(self) -> list[Prompt]:
        """The prompts of this process, except those of which every sample has failed."""
        lines = (index for index in self.prompts if self.ranks is None or self.ranks.mine(index))
        return [self.prompts[index] for index in lines if not self.has_failed(index)]

    def has_failed(self, index: int) -> bool:
        """Whether all of a line's samples failed."""
        return all((index, sample) in self.failed for sample in range(self.arguments.n))

    def options(self) -> RunOptions:
        """The options, as the runner takes them."""
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

    # Its progress.

    def take(self, event: Event, output: Output, progress: Progress) -> None:
        """Hand an event of the runner to file, output, progress and summary."""
        if isinstance(event, TextDelta):
            output.delta(event)
        elif isinstance(event, Result):
            if self.file is not None:
                self.file.append(self.record(event))
            self.summary.add(event)
            with progress.aside():
                output.result(event)
                self._tell_notices(event)
            progress.advance(event.new_tokens)
        else:
            with progress.aside():
                self.fail(event)
                output.failure(event)

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
            where = [] if self.source is None else [f"{self.source}, line {index + 1}"]
            where += [] if sample is None or n == 1 else [f"sample {sample + 1}"]
            self.tell_of_line(index, f"{', '.join(where)}: {failure.error.reason}")

    def merge(self) -> None:
        """Wait for the other processes; rank 0 puts the results of all in order, and says what the others have to."""
        if self.ranks is None:
            return
        reports = self.ranks.gathered((self.failed, self.for_first))
        if self.ranks.rank > 0:
            return
        assert self.file is not None
        for _, message in sorted((one for _, messages in reports for one in messages), key=lambda one: one[0]):
            tell(message)
        self.failed = set().union(*(failed for failed, _ in reports))
        results = count_of(self.file.sort(), "result")
        made = f"{self.sampler!r} seed {self.seed}, {self.ranks.world} processes"
        self.tell_unless_quiet(f"{made}: {results} in {self.arguments.output}.")

    # Messages about it.

    def tell_of_line(self, index: int, message: str) -> None:
        """Print a message about a line; if there are several processes, the first prints the messages of all."""
        if self.speaks:
            tell(message)
        else:
            self.for_first.append((index, message))

    def tell_unless_quiet(self, message: str) -> None:
        """Say something that --quiet leaves out."""
        if not self.arguments.quiet:
            tell(message)

    def tell_hints(self) -> None:
        """Print hints about options that have no effect, or probably not the intended one."""
        if not self.speaks:
            return
        hints = [*stop_hints(self._stops)]
        if self.arguments.beam is None and not any(prompt.params for prompt in self.prompts.values()):
            hints += sample_hints(self.sampler, self.arguments.n, self.arguments.best_of)
        for hint in [*hints, *self._remarks]:
            tell(hint)

    def tell_hints_of(self, model: Any) -> None:
        """Say what only the model shows: a GPU that is unused, special tokens that are taken as text, odd stops."""
        arguments, tokenizer = self.arguments, getattr(model, "tokenizer", None)
        if arguments.engine == "torch" and not arguments.quiet:
            tell_unused_gpu(arguments.device)
        if not arguments.parse_special and not arguments.quiet:
            tell_of_special(model, (prompt.text for prompt in self.prompts.values()))
        for hint in tokenizer_stop_hints(self._stops, tokenizer) if tokenizer is not None else ():
            self.tell_of_line(0, hint)

    @property
    def _stops(self) -> list[str]:
        """The stop strings of the run and of its prompts."""
        return [*self.arguments.stop, *(stop for prompt in self.prompts.values() for stop in prompt.stop or ())]

    @property
    def _remarks(self) -> list[str]:
        """What the run's processors say of themselves, which is told once."""
        return [remark for processor in self.processors for remark in processor.remarks]

    def _tell_notices(self, result: Result) -> None:
        """Print what processors say about a result, with its name if there are several results."""
        alone = self.source is None and self.arguments.n == 1
        which = "" if alone else f"prompt {result.index + 1}, sample {result.sample + 1}: "
        for notice in result.notices or ():
            if notice not in self._remarks:
                self.tell_of_line(result.index, which + notice)

    def say_summary(self, drafted: str) -> None:
        """Say what was done, where this process is the only one; `drafted` is how a draft has done."""
        if self.summary.sequences and self.ranks is None:
            results = count_of(len(self.done) + self.summary.sequences, "result")
            there = "" if self.file is None else f"; {results} in {self.arguments.output}"
            self.tell_unless_quiet(f"{self.summary.line(repr(self.sampler), self.seed)}{drafted}{there}")

    def interruption(self) -> str:
        """How many results there are, and how to continue the run."""
        arguments, finished = self.arguments, self.summary.sequences
        total = len(self.done) + len(self.todo)
        if self.ranks is not None and self.file is not None:
            of = f"{self.file.count()} of {len(self.prompts) * arguments.n} results"
            return f"Interrupted: {of} are there for {arguments.output}. Repeat the command to go on."
        if self.file is not None:
            there = len(self.done) + finished
            return f"Interrupted: {there} of {total} results are in {arguments.output}. Repeat the command to go on."
        if total == 1:
            return f"Interrupted. The seed was {self.seed}."
        return f"Interrupted after {finished} of {total} sequences. The seed was {self.seed}."

    def report_failures(self) -> int:
        """Say how many lines and samples gave no result.

        Returns:
            the exit code; if there are several processes, only the first fails for it.
        """
        if not self.speaks or not (self.failed or self.broken):
            return 0
        n = self.arguments.n
        if self.source is None:
            tell(f"{len(self.failed)} of {n} samples gave no result; see above.")
            return EXIT_FAILURES
        without = {index for index, _ in self.failed if self.has_failed(index)}
        partly = {index for index, _ in self.failed} - without
        lines = f"{len(self.prompts) + self.broken} lines of {self.source}"
        kinds = [f"{self.broken} not a prompt"] if self.broken else []
        kinds += [f"{len(without)} could not be run"] if without else []
        if kinds:
            tell(f"{len(without) + self.broken} of {lines} gave no result ({', '.join(kinds)}); see above.")
        if partly:
            lost = sum(index in partly for index, _ in self.failed)
            lacking = f"{lost} of their {n * len(partly)} samples could not be finished"
            tell(f"{len(partly)} of {lines} gave some results only ({lacking}); see above.")
        return EXIT_FAILURES

    # What a line of the results file holds.

    def identity(self, key: Key) -> dict[str, Any] | None:
        """What the result of a key has in this run and in none that differs; None for a key that is not of this run."""
        index, sample = key
        prompt = self.prompts.get(index)
        if prompt is None or sample not in range(self.arguments.n):
            return None
        first = prompt.seed if prompt.seed is not None else self.seed + index * self.arguments.n
        processors = self.processors
        if prompt.processors is not None:
            processors = load_processors(prompt.processors) if prompt.processors else []
        return {
            "prompt": prompt.text,
            "sampler": self.sampler.name,
            "params": self.sampler.params.model_dump() | dict(prompt.params),
            **({"seed": first + sample} if self.arguments.best_of == 1 else {}),
            "processors": list(map(repr, processors)) or None,
            "run": dict.fromkeys(OPTIONAL_SETTINGS) | self.arguments.settings(prompt, self.sampler, self.seed),
        }

    def record(self, result: Result) -> Mapping[str, Any]:
        """A result as a line of the file: what `--json` prints, and the settings of the run."""
        key = {"index": result.index, "sample": result.sample}  # first, whatever the order of a result
        prompt = self.prompts[result.index]
        return {**key, **result.to_json(), "run": self.arguments.settings(prompt, self.sampler, self.seed)}
