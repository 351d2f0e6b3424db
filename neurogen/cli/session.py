"""What `neurogen run` does once its options are known: prompts, results file, model, runner, output, closing line.

Whatever can be refused is refused before the model is loaded; torch is imported no earlier than that.
"""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import is_terminal, tell
from neurogen.cli.draft_options import draft_engine, draft_identity, told_of_draft
from neurogen.cli.engine_options import load_for_engine
from neurogen.cli.output import JsonOutput, Output, Summary, TextOutput, Watch, if_slow, loading
from neurogen.cli.ranks import launched, local_device
from neurogen.errors import DataError, NeurogenError, ParameterError
from neurogen.parameters import INT64, is_whole
from neurogen.prompts import read_prompts, read_text
from neurogen.ranks import Ranks, adopt
from neurogen.registry import load_processors
from neurogen.results import Key, ResultsFile
from neurogen.runner import Failure, Prompt, Result, Runner, RunOptions, TextDelta

if TYPE_CHECKING:
    from neurogen.processor import Processor
    from neurogen.recording import Recorder
    from neurogen.request import DecodableModel, DecodingEngine
    from neurogen.sampler import Sampler
    from neurogen.strategies.beam_settings import BeamSettings
    from neurogen.strategies.speculative import SpeculativeEngine

__all__ = ["Arguments", "execute"]

EXIT_FAILURES = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
SEEDS = 2**31
OPTIONAL = ("best_of", "beam", "draft")
"""Settings that a line of a results file has only where they were given."""

GPU_SIGNS = ("/dev/nvidia0", "/dev/nvidiactl", "/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Arguments:
    """The options of `neurogen run`, save the sampler and its own."""

    model: str
    prompt: str | None
    prompts: str | None
    n: int
    max_new_tokens: int
    seed: int | None
    stop: tuple[str, ...]
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
    threads: int | None = None
    best_of: int = 1
    beam: BeamSettings | None = None
    draft: str | None = None
    draft_tokens: int | None = None

    @property
    def drawn(self) -> int:
        """Sequences drawn for each prompt: a seed each."""
        return self.n * self.best_of


class Terminated(BaseException):
    """SIGTERM has come."""


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
        failed: lines whose prompt could not be run, or not all of its samples.
        ranks: this process's share of the prompts; None where it is the only one.
        speculative: decodes, where there is a draft.
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
    failed: set[int] = field(default_factory=set)
    ranks: Ranks | None = None
    speculative: SpeculativeEngine | None = None

    def mine(self) -> list[int]:
        """The lines of this process, save those that have failed."""
        return [
            index
            for index in self.prompts
            if index not in self.failed and (self.ranks is None or self.ranks.mine(index))
        ]

    def sequences(self) -> Iterator[Key]:
        """All sequences of this process, done or not, save those of lines that have failed."""
        return ((index, sample) for index in self.mine() for sample in range(self.arguments.n))

    def tell(self, index: int, message: str) -> None:
        """Say something about a line; of several processes only the first says it, for all."""
        if self.ranks is None or self.ranks.rank == 0:
            tell(message)
        else:
            self.ranks.told.append((index, message))

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
        return {
            "model": arguments.model,
            "plugin": self.sampler.origin,
            "seed": self.seed,
            "n": arguments.n,
            "max_new_tokens": prompt.max_new_tokens or arguments.max_new_tokens,
            "stop": list(arguments.stop if prompt.stop is None else prompt.stop),
            "logprobs": arguments.logprobs,
            "chat": arguments.chat,
            "dtype": arguments.dtype,
            "engine": arguments.engine,
            **({"best_of": arguments.best_of} if arguments.best_of > 1 else {}),
            **({"beam": asdict(arguments.beam)} if arguments.beam is not None else {}),
            **({"draft": draft_identity(draft, arguments.draft_tokens)} if draft is not None else {}),
        }


def execute(arguments: Arguments, sampler: Sampler, processors: Sequence[Processor] = ()) -> int:
    """Do the run.

    Returns:
        the exit code.

    Raises:
        NeurogenError: nothing can be run, or the run cannot go on.
    """
    ranks = launched(vars(arguments), click.get_current_context(silent=True))
    if ranks is not None:
        return _execute_share(replace(arguments, quiet=arguments.quiet or ranks.rank > 0), sampler, processors, ranks)
    prompts, source, broken = _read(arguments, sampler)
    with ExitStack() as stack:
        file = stack.enter_context(ResultsFile(arguments.output)) if arguments.output is not None else None
        seed = _seed(arguments, file)
        session = Session(arguments, sampler, processors, prompts, source, broken, seed, file)
        _check_seeds(session)
        if file is not None:
            session.done = adopt(file, file.resume(session.identity), session.identity)
        todo = [key for key in session.sequences() if key not in session.done]
        if not todo and not session.failed:
            _say(
                arguments,
                f"{arguments.output} holds all {_results(len(session.done))} already: there is nothing to do.",
            )
        if todo:
            stack.enter_context(_sigterm_raises())
            _announce(session, todo)
            code = _run(session, todo)
            if code:
                return code
    return _report_failures(session)


def _execute_share(arguments: Arguments, sampler: Sampler, processors: Sequence[Processor], ranks: Ranks) -> int:
    """Do this process's share of the run, and as rank 0 merge what all have done; see `neurogen.ranks`."""
    prompts, source, broken = _read(arguments, sampler, told=ranks.rank == 0)
    assert arguments.output is not None
    assert arguments.seed is not None
    with ExitStack() as stack:
        whole = stack.enter_context(ResultsFile(arguments.output)) if ranks.rank == 0 else None
        file = stack.enter_context(ResultsFile(ranks.own))
        session = Session(arguments, sampler, processors, prompts, source, broken, arguments.seed, file, ranks=ranks)
        stack.callback(ranks.close)
        ranks.begin()
        _check_seeds(session)
        if whole is not None:
            whole.resume(session.identity)
        session.done = file.resume(session.identity) | ranks.done_elsewhere(session.identity)
        todo = [key for key in session.sequences() if key not in session.done]
        stack.enter_context(_sigterm_raises())
        if session.done:
            _say(arguments, f"Going on with {arguments.output}.")
        try:
            code = _run(session, todo) if todo else 0
            if code:
                return code
            if ranks.rank > 0:
                ranks.wait(session.failed)
                return 0
            gathered = ranks.gather(session.identity)
        except (KeyboardInterrupt, Terminated) as stop:
            session.tell(0, _interruption(session, 0, 0))
            return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
        for _, message in gathered.told:
            tell(message)
        session.failed |= gathered.failed
        made = f"{sampler!r} seed {arguments.seed}, {ranks.world} processes"
        _say(arguments, f"{made}: {_results(gathered.results)} in {arguments.output}.")
    return _report_failures(session)


def _read(arguments: Arguments, sampler: Sampler, *, told: bool = True) -> tuple[dict[int, Prompt], str | None, int]:
    """The prompts by line, the file they are from, and how many lines hold none."""
    if arguments.prompts is None:
        text = arguments.prompt if arguments.prompt is not None else _standard_input()
        return {0: Prompt(0, text)}, None, 0
    source = "standard input" if arguments.prompts == "-" else arguments.prompts
    prompts, broken = read_prompts(arguments.prompts, sampler)
    for line in broken if told else ():
        tell(f"{line}.")
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


def _seed(arguments: Arguments, file: ResultsFile | None) -> int:
    if arguments.seed is not None:
        return arguments.seed
    begun = file.seed if file is not None else None
    return secrets.randbelow(SEEDS) if begun is None else begun


def _check_seeds(session: Session) -> None:
    """Refuse a seed of which a later sample's would not fit 64 bits; where it is a line's own, that line has failed."""
    n = session.arguments.drawn
    shared = [index for index, prompt in session.prompts.items() if prompt.seed is None]
    largest = session.seed + max(shared, default=0) * n + n - 1
    if shared and not is_whole(largest):
        raise click.UsageError(
            f"--seed {session.seed} is too large: the seeds of this run go up to {largest}, and the largest of 64 bits "
            f"is {INT64[-1]}. Give a smaller one.",
            click.get_current_context(),
        )
    mine = set(session.mine())
    for index, prompt in session.prompts.items():
        if index in mine and prompt.seed is not None and not is_whole(prompt.seed + n - 1):
            problem = (
                f"'seed' is {prompt.seed}, and the last of {n} samples would have {prompt.seed + n - 1}; the largest "
                f"of 64 bits is {INT64[-1]}. Give a smaller one."
            )
            _fail(session, Failure(index, ParameterError(problem, "seed")))


def _announce(session: Session, todo: list[Key]) -> None:
    if session.done:
        there = f"{len(session.done)} of {len(session.done) + len(todo)} results are there"
        _say(session.arguments, f"Going on with {session.arguments.output}: {there}.")


def _run(session: Session, todo: list[Key]) -> int:
    """Load the model and run what is to do.

    Returns:
        0, or the exit code of an interruption.
    """
    summary = Summary(repr(session.sampler), session.seed)
    try:
        model = _load(session.arguments, session.sampler)
        session.speculative = _speculative(session, model)
        summary = Summary(repr(session.sampler), session.seed)
        _events(session, model, todo, summary)
    except (KeyboardInterrupt, Terminated) as stop:
        session.tell(0, _interruption(session, len(todo), summary.sequences))
        return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
    if summary.sequences and session.ranks is None:
        there = f"; {_results(len(session.done) + summary.sequences)} in {session.arguments.output}"
        drafted = told_of_draft(session.speculative) if session.speculative is not None else ""
        _say(session.arguments, summary.line() + drafted + (there if session.file is not None else ""))
    return 0


def _load(arguments: Arguments, sampler: Sampler) -> Any:
    """The model, and the sampler's kernels for it, which may have to be compiled: no time of decoding."""
    with loading(arguments.model, shown=is_terminal(sys.stderr) and not arguments.quiet) as instead:
        from neurogen.models import resolve_device

        torchs = arguments.device if arguments.engine == "torch" else "cpu"
        device, reason = resolve_device(torchs)
        model = load_for_engine(
            arguments.engine,
            arguments.model,
            device=local_device(arguments.device),
            dtype=arguments.dtype,
            threads=arguments.threads,
        )
        slow = f"Making {sampler.name} ready: its kernels are compiled once, which takes about 10 seconds ..."
        # What is wrong with the sampler shows where it is used.
        if arguments.engine != "vllm":
            with if_slow(lambda: instead(slow)), suppress(NeurogenError):
                _warm(sampler, model)
    if torchs == "auto" and device.type == "cpu" and any(Path(sign).exists() for sign in GPU_SIGNS):
        _say(arguments, f"Running on the CPU ({reason}), although this machine has an NVIDIA device.")
    return model


def _speculative(session: Session, model: Any) -> SpeculativeEngine | None:
    """What decodes with a draft, loaded now; None where there is none."""
    arguments = session.arguments
    if arguments.draft is None:
        return None
    with loading(arguments.draft, shown=is_terminal(sys.stderr) and not arguments.quiet):
        return draft_engine(
            model,
            arguments.draft,
            session.sampler,
            draft_tokens=arguments.draft_tokens,
            batch_size=arguments.batch_size,
            dtype=arguments.dtype,
        )


def _warm(sampler: Sampler, model: Any) -> None:
    """Sample once as the engine does, so that the kernels for this model are there."""
    import torch

    vocab = min(model.vocab_size, model.tokenizer.vocab_size)
    logits = torch.zeros((1, model.vocab_size), dtype=model.dtype, device=model.device)[:, :vocab]
    state = sampler.new_state(1) if sampler.stateful else None
    sampler.sample(logits, state=state)


def _events(session: Session, model: DecodableModel, todo: list[Key], summary: Summary) -> None:
    """Run, and hand every event to file, output, progress and summary."""
    arguments = session.arguments
    streams = arguments.stream if arguments.stream is not None else len(todo) == 1
    output = _output(arguments, todo, streams)
    bar = is_terminal(sys.stderr) and not arguments.quiet
    if isinstance(output, TextOutput) and streams and is_terminal(sys.stdout):
        bar = False
    watch = Watch(total=len(todo) + len(session.done), done=len(session.done), shown=bar)
    options = RunOptions(
        n=arguments.n,
        max_new_tokens=arguments.max_new_tokens,
        seed=session.seed,
        stop=arguments.stop,
        logprobs=arguments.logprobs,
        chat=arguments.chat,
        batch_size=arguments.batch_size,
        processors=session.processors,
    )
    with ExitStack() as stack:
        observer = stack.enter_context(_recorder(session, model, options)) if arguments.record is not None else None
        runner = _runner(session, model, options, observer)
        stack.push(_closer(output))
        stack.callback(watch.close)
        for event in runner.run(session.queue(), skip=lambda index, sample: (index, sample) in session.done):
            if isinstance(event, TextDelta):
                output.delta(event)
            elif isinstance(event, Result):
                if session.file is not None:
                    session.file.append(session.record(event))
                summary.add(event)
                with watch.aside():
                    output.result(event)
                    _tell_notices(session, event)
                watch.advance(event.new_tokens)
            elif isinstance(event, Failure):
                with watch.aside():
                    _fail(session, event)
                    output.failure(event)


def _runner(session: Session, model: Any, options: RunOptions, observer: Recorder | None) -> Any:
    """What runs the prompts: one sequence for each sample, the best of several, or another program altogether."""
    if session.arguments.engine == "vllm":
        return model.runner(session.sampler, options)
    if session.arguments.beam is not None:
        from neurogen.strategies.beam import BeamEngine, BeamSearch

        search = BeamSearch(model, **asdict(session.arguments.beam))
        return Runner(model, session.sampler, options, engine=BeamEngine(search, session.sampler))
    engine: DecodingEngine
    engine = session.speculative or model.engine(session.sampler, batch_size=options.batch_size, observer=observer)
    many = session.arguments.best_of
    if many == 1:
        return Runner(model, session.sampler, options, engine=engine)
    from neurogen.strategies.best_of import BestOf

    return BestOf(model, session.sampler, options, candidates=many, engine=engine)


@contextmanager
def _recorder(session: Session, model: Any, options: RunOptions) -> Iterator[Recorder]:
    """The recording of the run; marked as complete where nothing has stopped it."""
    from neurogen.recording import Recorder

    prompts = [prompt for index, prompt in session.prompts.items() if index not in session.failed]
    assert session.arguments.record is not None
    recorder = Recorder(session.arguments.record, model, session.sampler, options, prompts, session.done)
    complete = False
    try:
        yield recorder
        complete = True
    finally:
        recorder.close(complete=complete)


def _tell_notices(session: Session, result: Result) -> None:
    """What processors say about a result; where there are several, which one is meant."""
    alone = session.source is None and session.arguments.n == 1
    which = "" if alone else f"prompt {result.index + 1}, sample {result.sample + 1}: "
    for notice in result.notices or ():
        session.tell(result.index, which + notice)


def _output(arguments: Arguments, todo: list[Key], streams: bool) -> Output:
    if arguments.as_json:
        return JsonOutput()
    if arguments.output is not None and not arguments.stream:
        return Output()
    return TextOutput(todo, stream=streams, terminal=is_terminal(sys.stdout))


def _closer(output: Output) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """Closes an output whatever has happened, unless nobody reads it any more."""

    def close(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, BrokenPipeError):
            output.close()

    return close


def _fail(session: Session, failure: Failure) -> None:
    error = failure.error
    if session.source is None:
        raise error if isinstance(error, NeurogenError) else DataError(str(error))
    session.failed.add(failure.index)
    session.tell(failure.index, f"{session.source}, line {failure.index + 1}: {error}")


def _report_failures(session: Session) -> int:
    failed = len(session.failed) + session.broken
    if not failed:
        return 0
    kinds = []
    if session.broken:
        kinds.append(f"{session.broken} not a prompt")
    if session.failed:
        kinds.append(f"{len(session.failed)} could not be run")
    lines = len(session.prompts) + session.broken
    summary = f"{failed} of {lines} lines of {session.source} gave no result ({', '.join(kinds)}); see above."
    tell(summary)
    return EXIT_FAILURES


def _interruption(session: Session, todo: int, finished: int) -> str:
    total = len(session.done) + todo
    if session.ranks is not None:
        of = f"{session.ranks.count()} of {len(session.prompts) * session.arguments.n} results"
        return f"Interrupted: {of} are there for {session.arguments.output}. Repeat the command to go on."
    if session.file is not None:
        there = len(session.done) + finished
        where = session.arguments.output
        return f"Interrupted: {there} of {total} results are in {where}. Repeat the command to go on."
    if total == 1:
        return f"Interrupted. The seed was {session.seed}."
    return f"Interrupted after {finished} of {total} sequences. The seed was {session.seed}."


def _results(count: int) -> str:
    return "1 result" if count == 1 else f"{count:,} results"


def _say(arguments: Arguments, message: str) -> None:
    if not arguments.quiet:
        tell(message)


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
