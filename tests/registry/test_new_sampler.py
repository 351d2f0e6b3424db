"""`neurogen new-sampler` writes a package that installs, passes its tests and runs, and overwrites nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from environments import Environment

import neurogen
from neurogen.cli.program import main
from neurogen.errors import DataError, ParameterError
from neurogen.registry.scaffold import new_sampler

PIP = ("-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir")


@pytest.fixture
def registry() -> neurogen.Registry:
    return neurogen.Registry(disabled=())


def neurogen_command(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("with_kernels", [False, True], ids=["torch", "kernels"])
def test_the_package_is_complete_and_well_formed(
    with_kernels: bool, tmp_path: Path, registry: neurogen.Registry
) -> None:
    files = new_sampler("my-own", tmp_path, registry, with_kernels=with_kernels)
    folder = tmp_path / "neurogen-my-own"
    assert {file for file in folder.rglob("*") if file.is_file()} == set(files)
    kernels = {"neurogen_my_own/cpu.py", "neurogen_my_own/cuda.py"}
    names = {file.relative_to(folder).as_posix() for file in files}
    assert (kernels <= names) is with_kernels
    assert not any("$" in file.read_text() for file in files)
    ruff = [sys.executable, "-m", "ruff", "--isolated"]
    for command in (["check", "--select", "E,F,W,UP,B"], ["format", "--check"]):
        done = subprocess.run(
            [*ruff, command[0], "--line-length", "120", *command[1:], folder], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_exists_is_never_overwritten(tmp_path: Path, registry: neurogen.Registry) -> None:
    folder = tmp_path / "neurogen-mine"
    folder.mkdir()
    with pytest.raises(DataError, match=r"neurogen-mine exists already, and nothing is overwritten"):
        new_sampler("mine", tmp_path, registry)
    assert list(folder.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file exists already"):
        new_sampler("mine", tmp_path / "file", registry)


@pytest.mark.parametrize(
    "name", ["", "Mine", "2nd", "my sampler", "a--b", "a-", "-a", "_a", "a+b", "a.b", "ä", "a/../b", "x" * 61]
)
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path, registry: neurogen.Registry) -> None:
    with pytest.raises(ParameterError, match=r"A sampler's name is at most 60 small letters"):
        new_sampler(name, tmp_path, registry)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_taken_is_refused(tmp_path: Path, registry: neurogen.Registry) -> None:
    with pytest.raises(ParameterError, match=r"The sampler 'topk' is installed already, by neurogen-topk"):
        new_sampler("topk", tmp_path, registry)
    with pytest.raises(ParameterError, match=r"A module 'neurogen_greedy' is installed already"):
        new_sampler("greedy", tmp_path, neurogen.Registry(entry_points=[]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["none", "true", "class", "neurogen", "a1-b2_c3"])
def test_names_that_python_uses_itself_give_modules_that_import(
    name: str, tmp_path: Path, registry: neurogen.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_sampler(name, tmp_path, registry)
    monkeypatch.syspath_prepend(tmp_path / f"neurogen-{name.replace('_', '-')}")
    package = __import__(f"neurogen_{name.replace('-', '_')}")
    (cls,) = package.neurogen_samplers()
    assert cls().name == name


def test_the_command_says_what_it_wrote_and_what_comes_next(tmp_path: Path) -> None:
    done = neurogen_command("new-sampler", "mine", "--out", str(tmp_path))
    assert done.exit_code == 0
    assert f"{tmp_path}/neurogen-mine/pyproject.toml\n" in done.stdout
    assert f"pip install -e {tmp_path}/neurogen-mine\n" in done.stdout
    again = neurogen_command("new-sampler", "mine", "--out", str(tmp_path))
    assert (again.exit_code, again.stdout) == (1, "")
    assert "exists already" in again.stderr
    wrong = neurogen_command("new-sampler", "not one", "--out", str(tmp_path))
    assert wrong.exit_code == 2
    assert "Invalid value for NAME: A sampler's name is" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("with_kernels", [False, True], ids=["torch", "kernels"])
def test_the_package_installs_passes_its_tests_and_runs(
    with_kernels: bool, tmp_path: Path, tiny_model_dir: Path
) -> None:
    fresh = Environment(tmp_path / "venv")
    options = ["--with-kernel"] if with_kernels else []
    fresh.run("-m", "neurogen", "new-sampler", "mine", "--out", tmp_path, *options)
    folder = tmp_path / "neurogen-mine"
    fresh.run(*PIP, "--editable", folder)

    tests = fresh.run("-m", "pytest", folder, "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-q").stdout
    skipped = ("2 skipped", "3 skipped") if with_kernels else ("4 skipped",)  # the third where there is no extra `cuda`
    assert any(count in tests for count in skipped), tests
    assert "failed" not in tests

    prompt = ("--model", tiny_model_dir, "--prompt", "once upon a time", "--max-new-tokens", "5", "--seed", "3")

    def run(*sampler: str) -> str:
        return fresh.run("-m", "neurogen", "run", *prompt, *sampler).stdout

    assert run("--sampler", "mine", "--share", "0.1").strip()
    assert run("--sampler", "mine", "--share", "1") == run("--sampler", "greedy")
    report = fresh.run("-m", "neurogen", "conformance", "mine", "--quick", "--only", "support", "--only", "frequencies")
    assert "mine(share=0.1, temperature=1.0) of neurogen-mine 0.1.0" in report.stdout
    assert "2 passed, 0 failed" in report.stdout
    doctor = fresh.run("-m", "neurogen", "plugins", "doctor", "--no-conformance").stdout
    assert str(folder / "neurogen_mine" / "__init__.py") in doctor
    assert "no problems" in doctor
