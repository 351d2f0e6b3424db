"""How `neurogen run` goes: files are opened, the model is loaded, events reach file and output, the run is closed.

What was asked for and what has become of it is in `session`; what decodes is made by `runners`. Whatever can be
refused is refused before the model is loaded; torch is imported no earlier than that.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import click

from neurogen.cli.common import is_terminal, tell
from neurogen.cli.draft_options import told_of_draft
from neurogen.cli.model_options import tell_of_special
from neurogen.cli.output import JsonOutput, Output, Summary, TextOutput, Watch
from neurogen.cli.prompt_sharing import Ranks, adopt
from neurogen.cli.ranks import launched
from neurogen.cli.results import ResultsFile
from neurogen.cli.runners import Loaded, load, make_runner
from neurogen.cli.session import Arguments, Session, prompts_of, seed_of
from neurogen.text.generation import Event, Result, RunOptions, TextDelta
from neurogen.text.hints import tokenizer_stop_hints

if TYPE_CHECKING:
    from neurogen.contract.processor import Processor
    from neurogen.contract.sampler import Sampler
    from neurogen.diagnosis.recording import Recorder

__all__ = ["execute"]

EXIT_FAILURES = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM has come."""


def execute(arguments: Arguments, sampler: Sampler, processors: Sequence[Processor] = ()) -> int:
    """Do the run, or this process's share of it.

    Returns:
        the exit code.

    Raises:
        NeurogenError: nothing can be run, or the run cannot go on.
    """
    ranks = launched(vars(arguments), click.get_current_context(silent=True))
    with ExitStack() as stack:
        if ranks is None:
            session = _begin(arguments, sampler, processors, stack)
        else:
            session = _begin_share(arguments, sampler, processors, ranks, stack)
        stack.enter_context(_sigterm_raises())
        try:
            session.options()  # what contradicts itself shows before a model is loaded
            if session.todo:
                session.tell_hints()
                _run(session)
            if ranks is not None:
                _end_share(session, ranks)
        except (KeyboardInterrupt, Terminated) as stop:
            session.tell(0, _interruption(session))
            return EXIT_TERMINATED if isinstance(stop, Terminated) else EXIT_INTERRUPTED
    return _report_failures(session) if ranks is None or ranks.rank == 0 else 0


def _begin(arguments: Arguments, sampler: Sampler, processors: Sequence[Processor], stack: ExitStack) -> Session:
    """Read the prompts, and what an earlier run has left in the results file, which `stack` closes."""
    prompts, source, broken = prompts_of(arguments, sampler)
    file = stack.enter_context(ResultsFile(arguments.output)) if arguments.output is not None else None
    session = Session(arguments, sampler, processors, prompts, source, broken, seed_of(arguments, file), file)
    session.check_seeds()
    session.resume(adopt(file, file.resume(session.identity), session.identity) if file is not None else set())
    there, everything = len(session.done), len(session.done) + len(session.todo)
    if session.done and session.todo:
        session.say(f"Going on with {arguments.output}: {there} of {everything} results are there.")
    elif not session.todo and not session.failed:
        session.say(f"{arguments.output} holds all {_results(there)} already: there is nothing to do.")
    return session


def _begin_share(
    arguments: Arguments, sampler: Sampler, processors: Sequence[Processor], ranks: Ranks, stack: ExitStack
) -> Session:
    """The same as one of several processes: it has a file of its own; see `neurogen.cli.prompt_sharing`."""
    arguments = replace(arguments, quiet=arguments.quiet or ranks.rank > 0)
    prompts, source, broken = prompts_of(arguments, sampler, told=ranks.rank == 0)
    assert arguments.output is not None
    assert arguments.seed is not None
    whole = stack.enter_context(ResultsFile(arguments.output)) if ranks.rank == 0 else None
    file = stack.enter_context(ResultsFile(ranks.own))
    session = Session(arguments, sampler, processors, prompts, source, broken, arguments.seed, file, ranks=ranks)
    stack.callback(ranks.close)
    ranks.begin()
    session.check_seeds()
    if whole is not None:
        whole.resume(session.identity)
    session.resume(file.resume(session.identity) | ranks.done_elsewhere(session.identity))
    if session.done:
        session.say(f"Going on with {arguments.output}.")
    return session


def _end_share(session: Session, ranks: Ranks) -> None:
    """Wait for the merge of all shares, or as rank 0 do it."""
    if ranks.rank > 0:
        ranks.wait(session.failed)
        return
    gathered = ranks.gather(session.identity)
    for _, message in gathered.told:
        tell(message)
    session.failed |= gathered.failed
    made = f"{session.sampler!r} seed {session.seed}, {ranks.world} processes"
    session.say(f"{made}: {_results(gathered.results)} in {session.arguments.output}.")


def _run(session: Session) -> None:
    """Load the model and run what is to do."""
    if session.ranks is None or session.ranks.rank == 0:
        for remark in session.remarks:
            tell(remark)
    loaded = load(session)
    if not session.arguments.parse_special and not session.arguments.quiet:
        tell_of_special(loaded.model, (prompt.text for prompt in session.prompts.values()))
    summary = Summary(repr(session.sampler), session.seed)
    _stream(session, loaded, summary)
    if session.finished and session.ranks is None:
        drafted = told_of_draft(loaded.speculative) if loaded.speculative is not None else ""
        there = f"; {_results(len(session.done) + session.finished)} in {session.arguments.output}"
        session.say(summary.line() + drafted + (there if session.file is not None else ""))


def _stream(session: Session, loaded: Loaded, summary: Summary) -> None:
    """Hand every event of the run to file, output, progress and summary."""
    options = session.options()
    _tell_of_stops(session, loaded)
    with ExitStack() as stack:
        recording = session.arguments.record is not None
        observer = stack.enter_context(_recorder(session, loaded, options)) if recording else None
        runner = make_runner(loaded, session, options, observer)
        output, watch = _display(session)
        stack.push(_closer(output))
        stack.callback(watch.close)
        for event in runner.run(session.queue(), skip=lambda index, sample: (index, sample) in session.done):
            _take(event, session, output, watch, summary)


def _tell_of_stops(session: Session, loaded: Loaded) -> None:
    """Hints about stop strings that only the model's tokenizer tells."""
    tokenizer = getattr(loaded.model, "tokenizer", None)
    for hint in tokenizer_stop_hints(session.stops, tokenizer) if tokenizer is not None else ():
        tell(hint)


def _take(event: Event, session: Session, output: Output, watch: Watch, summary: Summary) -> None:
    if isinstance(event, TextDelta):
        output.delta(event)
    elif isinstance(event, Result):
        if session.file is not None:
            session.file.append(session.record(event))
        session.finished += 1
        summary.add(event)
        with watch.aside():
            output.result(event)
            _tell_notices(session, event)
        watch.advance(event.new_tokens)
    else:
        with watch.aside():
            session.fail(event)
            output.failure(event)


def _display(session: Session) -> tuple[Output, Watch]:
    """Where results are shown, and how far the run is: no bar beside a text that grows in a terminal."""
    arguments, todo = session.arguments, session.todo
    streams = arguments.stream if arguments.stream is not None else len(todo) == 1
    output = _output(session, streams)
    grows = isinstance(output, TextOutput) and streams and is_terminal(sys.stdout)
    done = len(session.done)
    return output, Watch(total=len(todo) + done, done=done, shown=arguments.shows_progress and not grows)


def _output(session: Session, streams: bool) -> Output:
    arguments = session.arguments
    if arguments.as_json:
        return JsonOutput()
    if arguments.output is not None and not arguments.stream:
        return Output()
    return TextOutput(session.todo, stream=streams, terminal=is_terminal(sys.stdout))


def _closer(output: Output) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """Closes an output whatever has happened, unless nobody reads it any more."""

    def close(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, BrokenPipeError):
            output.close()

    return close


@contextmanager
def _recorder(session: Session, loaded: Loaded, options: RunOptions) -> Iterator[Recorder]:
    """The recording of the run; marked as complete where nothing has stopped it."""
    from neurogen.diagnosis.recording import Recorder

    prompts = [prompt for index, prompt in session.prompts.items() if not session.has_failed(index)]
    assert session.arguments.record is not None
    recorder = Recorder(session.arguments.record, loaded.model, session.sampler, options, prompts, session.done)
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
        if notice not in session.remarks:
            session.tell(result.index, which + notice)


def _report_failures(session: Session) -> int:
    """Say how many lines and samples gave no result; the exit code."""
    if not session.failed and not session.broken:
        return 0
    n, samples = session.arguments.n, len(session.failed)
    if session.source is None:
        tell(f"{samples} of {n} samples gave no result; see above.")
        return EXIT_FAILURES
    without = {index for index, _ in session.failed if session.has_failed(index)}
    partly = {index for index, _ in session.failed} - without
    kinds = [f"{session.broken} not a prompt"] if session.broken else []
    kinds += [f"{len(without)} could not be run"] if without else []
    lines = len(session.prompts) + session.broken
    if kinds:
        failed = len(without) + session.broken
        tell(f"{failed} of {lines} lines of {session.source} gave no result ({', '.join(kinds)}); see above.")
    if partly:
        lost = sum(index in partly for index, _ in session.failed)
        lacking = f"{lost} of their {n * len(partly)} samples could not be finished"
        tell(f"{len(partly)} of {lines} lines of {session.source} gave some results only ({lacking}); see above.")
    return EXIT_FAILURES


def _interruption(session: Session) -> str:
    """What is there, and how to go on."""
    arguments, total = session.arguments, len(session.done) + len(session.todo)
    if session.ranks is not None:
        of = f"{session.ranks.count()} of {len(session.prompts) * arguments.n} results"
        return f"Interrupted: {of} are there for {arguments.output}. Repeat the command to go on."
    if session.file is not None:
        there = len(session.done) + session.finished
        return f"Interrupted: {there} of {total} results are in {arguments.output}. Repeat the command to go on."
    if total == 1:
        return f"Interrupted. The seed was {session.seed}."
    return f"Interrupted after {session.finished} of {total} sequences. The seed was {session.seed}."


def _results(count: int) -> str:
    return "1 result" if count == 1 else f"{count:,} results"


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
