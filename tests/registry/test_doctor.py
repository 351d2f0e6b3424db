"""`neurogen plugins doctor`: every kind of trouble with plugins is named, with its remedy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cli_helpers import process
from click.testing import CliRunner

from neurogen import Registry
from neurogen.cli.program import main
from neurogen.registry.doctor import UNFINISHED, Examined, examine

SAMPLER = """
import neurogen


class {cls}(neurogen.TruncationSampler):
    '''Keeps all.'''

    name = "{name}"
    api_version = {api}

    class Params(neurogen.SamplerParams):
        temperature: float = neurogen.Param(1.0, ge=0, description="Divides the logits.")

    def keep(self, logits, params):
        return {keep}


@neurogen.hookimpl
def neurogen_samplers():
    return [{cls}]
"""
KEEP_ALL = "logits > -float('inf')"


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, name: str, module: str, source: str, requires: str = "") -> None:
        """Install a distribution with one sampler, as an installer does."""
        info = self.folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n{needs}")
        (info / "entry_points.txt").write_text(f"[neurogen.samplers]\n{name} = {module}\n")
        (info / "INSTALLER").write_text("pip\n")
        if source:
            (self.folder / f"{module}.py").write_text(source)

    def sampler(self, distribution: str, name: str, module: str, *, requires: str = "", **parts: object) -> None:
        """Install a sampler that works, but for what `parts` say."""
        filled = {"cls": "Mine", "name": name, "api": 1, "keep": KEEP_ALL} | parts
        self.install(distribution, name, module, SAMPLER.format(**filled), requires)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield Site(folder)
    for module in [name for name in sys.modules if name.startswith("doctor_")]:
        del sys.modules[module]


def examined(name: str, *, conformance: bool = False) -> Examined:
    found = [plugin for plugin in examine(Registry(disabled=()), conformance=conformance) if plugin.name == name]
    return found[0]


def test_what_is_well_has_no_problem_and_says_where_it_comes_from(site: Site) -> None:
    site.sampler("neurogen-well", "well", "doctor_well")
    found = examined("well")
    assert (found.status, found.api_version, found.problems) == ("loaded", 1, [])
    assert found.file == str(site.folder / "doctor_well.py")
    assert found.load_seconds is not None


@pytest.mark.parametrize(
    ("source", "what", "remedy"),
    [
        ("import nowhere_to_be_found\n", "it needs the module 'nowhere_to_be_found'", "'nowhere_to_be_found', or rein"),
        ("1 / 0\n", "importing 'doctor_bad' raised ZeroDivisionError", "NEUROGEN_DISABLE_PLUGINS=neurogen-bad:bad"),
        ("", "its entry point names 'doctor_bad', which does not exist", "pip install --force-reinstall neurogen-bad"),
        (
            SAMPLER.format(cls="Bad", name="bad", api=9, keep=KEEP_ALL),
            "Bad.api_version is 9 and this neurogen speaks 1",
            "pip install --upgrade neurogen-bad neurogen",
        ),
    ],
    ids=["missing module", "broken import", "no module", "api version"],
)
def test_a_plugin_that_fails_is_told_with_its_remedy(site: Site, source: str, what: str, remedy: str) -> None:
    site.install("neurogen-bad", "bad", "doctor_bad", source)
    (problem,) = examined("bad").problems
    assert what in problem.what
    assert remedy in problem.remedy


def test_two_distributions_with_one_name_are_told_at_both(site: Site) -> None:
    site.sampler("neurogen-one", "twin", "doctor_one")
    site.sampler("neurogen-two", "twin", "doctor_two")
    found = [plugin for plugin in examine(Registry(disabled=()), conformance=False) if plugin.name == "twin"]
    assert [plugin.problems[0].what for plugin in found] == [
        "neurogen-two 1.0 offers a sampler of the same name",
        "neurogen-one 1.0 offers a sampler of the same name",
    ]
    assert "ask for 'neurogen-one:twin', uninstall one" in found[0].problems[0].remedy
    left = examine(Registry(disabled=["neurogen-two"]), conformance=False)
    twins = [plugin for plugin in left if plugin.name == "twin"]
    assert [plugin.problems for plugin in twins] == [[], []]
    assert twins[1].disabled == "left out by NEUROGEN_DISABLE_PLUGINS"


@pytest.mark.parametrize(
    ("requires", "what", "remedy"),
    [
        ("no-such-thing>=2", "it requires no-such-thing, which is not installed", 'pip install "no-such-thing>=2"'),
        ("click>=900", "it requires click>=900, and ", 'pip install "click>=900"'),
    ],
)
def test_requirements_that_are_not_met_are_told(site: Site, requires: str, what: str, remedy: str) -> None:
    site.sampler("neurogen-needy", "needy", "doctor_needy", requires=requires)
    (problem,) = examined("needy").problems
    assert problem.what.startswith(what)
    assert problem.remedy.startswith(remedy)


def test_requirements_of_an_extra_are_not_missed(site: Site) -> None:
    site.sampler("neurogen-extra", "extra", "doctor_extra", requires='no-such-thing; extra == "cuda"')
    assert examined("extra").problems == []


def test_a_module_that_is_shadowed_is_told(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.sampler("neurogen-real", "real", "doctor_real")
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "doctor_real.py").write_text((site.folder / "doctor_real.py").read_text())
    monkeypatch.syspath_prepend(other)
    (problem,) = examined("real").problems
    assert f"was loaded from {other / 'doctor_real.py'}, which is not where neurogen-real was installed" in problem.what


def test_a_distribution_that_is_installed_twice_is_told(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.sampler("neurogen-double", "double", "doctor_double")
    second = Site(tmp_path / "second")
    second.folder.mkdir()
    second.sampler("neurogen-double", "double", "doctor_double")
    monkeypatch.syspath_prepend(second.folder)
    assert any("is installed 2 times" in problem.what for problem in examined("double").problems)


@pytest.mark.slow
def test_a_sampler_that_breaks_its_contract_or_the_process_is_told(site: Site) -> None:
    site.sampler("neurogen-liar", "liar", "doctor_liar", keep="logits > -1.0")
    site.sampler("neurogen-killer", "killer", "doctor_killer", keep="__import__('os')._exit(77)")
    found = {plugin.name: plugin for plugin in examine(Registry(disabled=()))}
    liar, killer = found["liar"], found["killer"]
    assert "failed" in liar.conformance
    assert "it does not keep its contract: probs" in liar.problems[0].what
    assert "see `neurogen conformance neurogen-liar:liar`" in liar.problems[0].remedy
    assert killer.conformance == "exit code 77"
    assert "ended with exit code 77" in killer.problems[0].what
    assert found["topk"].conformance == "24 passed"


def test_the_command_prints_problems_and_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurogen.registry.registry._default", Registry(disabled=()))
    well = CliRunner().invoke(main, ["plugins", "doctor", "--no-conformance"])
    assert well.exit_code == 0
    assert "no problems" in well.stdout
    assert "/neurogen_topk/__init__.py" in well.stdout
    site.install("neurogen-bad", "bad", "doctor_bad", "1 / 0\n")
    monkeypatch.setattr("neurogen.registry.registry._default", Registry(disabled=()))
    bad = CliRunner().invoke(main, ["plugins", "doctor", "--no-conformance"])
    assert bad.exit_code == 1
    assert "\n1 problem\n\nsampler bad of neurogen-bad 1.0: importing 'doctor_bad' raised ZeroDivision" in bad.stdout
    told = CliRunner().invoke(main, ["plugins", "doctor", "--no-conformance", "--json"])
    entries = {entry["name"]: entry for entry in json.loads(told.stdout)}
    assert entries["bad"]["problems"][0]["remedy"].startswith("update neurogen-bad")
    assert entries["topk"]["problems"] == []


def test_by_default_no_sampler_is_run_and_the_command_says_so(site: Site) -> None:
    site.sampler("neurogen-killer", "killer", "doctor_killer", keep="__import__('os')._exit(77)")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "neurogen", "plugins", "doctor"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(site.folder), "NEUROGEN_DISABLE_PLUGINS": ""},
    )
    assert time.monotonic() - started < 30
    assert (done.returncode, "no problems" in done.stdout) == (0, True), done.stdout
    assert "Whether samplers keep their contract was not looked at: --conformance does" in done.stderr


def test_a_declared_module_that_is_not_there_is_told(site: Site) -> None:
    source = SAMPLER.format(cls="Mine", name="hollow", api=1, keep=KEEP_ALL).replace(
        "    api_version", '    backends = {"cpu": "doctor_hollow_cpu"}\n    reference = "json.gone"\n    api_version'
    )
    site.install("neurogen-hollow", "hollow", "doctor_hollow", source)
    assert [problem.what for problem in examined("hollow").problems] == [
        "it declares the module 'doctor_hollow_cpu' for cpu, which does not exist",
        "it declares the module 'json.gone' for its reference, which does not exist",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_ends_the_checks_and_prints_what_is_known(site: Site, as_json: bool) -> None:
    site.sampler("doctor-quick", "a-quick", "doctor_quick", keep="__import__('os')._exit(77)")
    site.sampler("doctor-slow", "b-slow", "doctor_slow", keep="__import__('time').sleep(600)")
    running = process(
        *("plugins", "doctor", "--conformance", *(["--json"] if as_json else [])),
        env=os.environ | {"PYTHONPATH": str(site.folder), "NEUROGEN_ONLY_PLUGINS": "doctor-quick,doctor-slow"},
    )
    assert running.stderr is not None
    assert running.stderr.readline() == b"Conformance, 1 of 2: doctor-quick:a-quick: exit code 77.\n"
    running.send_signal(signal.SIGINT)
    out, said = (text.decode() for text in running.communicate(timeout=60))
    assert running.returncode == 130
    assert said == "Stopped: the checks of 1 of 2 samplers have ended. What follows is what is known so far.\n"
    if as_json:
        found = {entry["name"]: entry["conformance"] for entry in json.loads(out) if entry["status"] == "loaded"}
        assert found == {"a-quick": "exit code 77", "b-slow": UNFINISHED}
    else:
        assert "its conformance checks ended with exit code 77" in out
        assert UNFINISHED in out
    assert not any(b"b-slow" in line for line in command_lines())


def command_lines() -> list[bytes]:
    """Those of all processes, where the system tells."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append(file.read_bytes())
    return found


def test_options_of_the_listing_are_not_those_of_the_doctor() -> None:
    result = CliRunner().invoke(main, ["plugins", "--json", "doctor"])
    assert result.exit_code == 2
    assert "--json belongs after the subcommand: doctor" in result.stderr


def test_the_listing_has_samplers_and_processors() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neurogen", "plugins", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"NEUROGEN_DISABLE_PLUGINS": ""},
        check=True,
    )
    assert {entry["kind"] for entry in json.loads(done.stdout)} == {"sampler", "processor"}
