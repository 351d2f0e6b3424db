"""`neurogen replay`: run a recording again, and say whether the tokens are the same, or where and why not."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from neurogen.cli.common import DescribedDefault, debug_option, device_option, is_terminal, tell, write_json
from neurogen.cli.completion import complete_model
from neurogen.cli.model_options import tell_unused_gpu
from neurogen.cli.output import loading, write_text
from neurogen.cli.ranks import check_single

if TYPE_CHECKING:
    from neurogen.diagnosis.replay import ReplayReport

__all__ = ["command"]

EXIT_DIFFERENT = 1


@click.command("replay")
@click.argument("file")
@click.option(
    "--model",
    shell_complete=complete_model,
    cls=DescribedDefault,
    show_default="the one recorded",
    help="Run another model: a folder, a file, a name.",
)
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no texts; the answer is the exit code.")
@debug_option
def command(file: str, model: str | None, device: str, as_json: bool, quiet: bool) -> int:
    """Repeat what `neurogen run --record FILE` has recorded: the same tokens, or at which step and why they differ.

    Exits with 0 where every token is the recorded one, and with 1 where one is not.
    """
    check_single(click.get_current_context())
    from neurogen.diagnosis.recording import read_recording

    recording = read_recording(file)
    shown = is_terminal(sys.stderr) and not quiet
    with loading(str(recording.head.get("model")) if model is None else model, shown=shown):
        from neurogen.diagnosis.replay import replay
        from neurogen.models.language_model import load_model

        dtype = str(recording.head.get("environment", {}).get("number format") or "auto")
        report = replay(
            recording, lambda name: load_model(name if model is None else model, device=device, dtype=dtype)
        )
    if not quiet:
        tell_unused_gpu(device)
    if as_json:
        write_json(_entry(report))
    elif not quiet:
        for result in sorted(report.results, key=lambda one: (one.index, one.sample)):
            write_text(result.text + "\n")
        tell(report.reason() + ("" if recording.complete else " The recording was cut off and was compared so far."))
    return 0 if report.same else EXIT_DIFFERENT


def _entry(report: ReplayReport) -> dict[str, Any]:
    return {
        "same": report.same,
        "reason": report.reason(),
        "sequences": report.sequences,
        "steps": report.steps,
        "drifted": report.drifted,
        "largest_drift": report.largest_drift,
        "differences": [asdict(one) for one in report.differences],
        "environment": {name: {"recorded": was, "now": now} for name, (was, now) in report.environment.items()},
        "results": [result.to_json() for result in report.results],
    }
