"""What an installation brings, and what is said of what it does not: the packages are declared in one place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import neurogen
from neurogen import Registry
from neurogen.errors import PluginError
from neurogen.registry.distributions import extra_with, requirements_of, samplers_to_install
from neurogen.registry.plugin import PROCESSORS

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"neurogen-greedy", "neurogen-topk", "neurogen-topp"}


def declared(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def of_samplers(folder: Path) -> dict[str, str]:
    """Sampler -> package, as the samplers' own packages declare them."""
    found = [declared(path) for path in sorted((folder / "plugins").iterdir()) if (path / "pyproject.toml").exists()]
    return {name: one["name"] for one in found for name in one["entry-points"]["neurogen.samplers"]}


def test_a_plain_install_brings_three_samplers_and_the_extra_brings_all() -> None:
    core = declared(ROOT)
    required = {Requirement(text).name for text in core["dependencies"]}
    assert {name for name in required if name.startswith("neurogen-")} == PLAIN
    assert {Requirement(text).name for text in core["optional-dependencies"]["samplers"]} == set(
        of_samplers(ROOT).values()
    )
    for text in [*core["dependencies"], *core["optional-dependencies"]["samplers"]]:
        if text.startswith("neurogen-"):
            assert Requirement(text).specifier.contains(core["version"]), text


def test_the_samplers_to_install_are_those_of_the_repository() -> None:
    assert dict(samplers_to_install()) == of_samplers(ROOT), "install neurogen again: `make setup`"


@pytest.mark.parametrize("name", list(of_samplers(ROOT)))
def test_a_sampler_that_is_not_installed_is_told_with_its_package(name: str) -> None:
    entry = EntryPoint("mine", "nowhere", "neurogen.samplers")
    with pytest.raises(PluginError) as caught:
        Registry([entry]).find("neurogen-xtc:xtc" if name == "xtc" else name)
    packages = " ".join(f"neurogen-{one}" for one in name.split("+"))
    assert f"comes with `pip install {packages}`." in str(caught.value)
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "here", "said"),
    [
        (
            "topk",
            ["topp"],
            "There is no sampler 'topk'. Installed: topp. 'topk' comes with `pip install neurogen-topk`.",
        ),
        ("topk(k=5)+topp", ["topp"], "'topk' comes with `pip install neurogen-topk`."),
        ("minp+xtc+topp", ["topp"], "'minp' comes with `pip install neurogen-minp neurogen-xtc`."),
        ("minp+mine", ["topp"], "'minp' comes with `pip install neurogen-minp`."),
        ("neurogen_minp:minp", ["topp"], "'minp' comes with `pip install neurogen-minp`."),
        ("top-k", ["greedy"], "Did you mean 'topk'? It comes with `pip install neurogen-topk`."),
        ("top-k", ["greedy", "topk"], "Did you mean 'topk'?"),
        ("other:topk", ["greedy"], "Did you mean 'topk'? It comes with `pip install neurogen-topk`."),
        ("nucleus", ["greedy"], "There is no sampler 'nucleus'. Installed: greedy."),
    ],
)
def test_what_is_said_of_a_name_that_no_plugin_has(name: str, here: list[str], said: str) -> None:
    registry = Registry([EntryPoint(one, f"neurogen_{one}", "neurogen.samplers") for one in here])
    with pytest.raises(PluginError) as caught:
        registry.find(name)
    assert str(caught.value).endswith(said)


def test_a_disabled_sampler_and_a_processor_are_not_to_be_installed() -> None:
    registry = Registry([EntryPoint("topk", "neurogen_topk", "neurogen.samplers")], disabled=["topk"])
    with pytest.raises(PluginError, match="is disabled"):
        registry.find("topk")
    with pytest.raises(PluginError, match="There is no sampler 'topkk'") as caught:
        registry.find("topkk")
    assert "neurogen-topk`" not in str(caught.value)
    with pytest.raises(PluginError, match="There is no processor 'topk'") as caught:
        registry.find("topk", PROCESSORS)
    assert "neurogen-topk" not in str(caught.value)


def test_the_extra_of_a_module_is_that_of_the_distribution() -> None:
    assert extra_with("tensorboard", "neurogen") == "tensorboard"
    assert extra_with("numba_cuda.numba", "neurogen") == "cuda"
    assert extra_with("click", "neurogen") is None
    assert extra_with("click", "no-such-distribution") is None
    assert ("", "torch") in {(extra, requirement.name) for extra, requirement in requirements_of("neurogen")}


def test_a_plugin_that_lacks_what_its_extra_brings_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "neurogen_needy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: neurogen-needy\nVersion: 1.0\nProvides-Extra: fast\n"
        'Requires-Dist: no_such.thing>=2; extra == "fast"\n'
    )
    (info / "entry_points.txt").write_text("[neurogen.samplers]\nneedy = neurogen_needy\n")
    (tmp_path / "neurogen_needy.py").write_text("import no_such_thing.parts\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"not installed \(`pip install 'neurogen-needy\[fast\]'`\)"):
        Registry().load_sampler("needy")


# Wheels, as they are published.


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel of every distribution of the repository, built from a copy: nothing is left in the tree."""
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=left_out)
    projects = [source, *sorted((source / "plugins").iterdir()), source / "integrations/neurogen-vllm"]
    command = ["wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-cache-dir"]
    pip(sys.executable, *command, "--wheel-dir", str(folder), *map(str, projects))
    return folder


def pip(python: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_wheels_hold_all_files_of_their_packages(wheels: Path) -> None:
    for project in [ROOT, *sorted((ROOT / "plugins").iterdir()), ROOT / "integrations/neurogen-vllm"]:
        module = declared(project)["name"].replace("-", "_")
        (wheel,) = wheels.glob(f"{module}-*.whl")
        inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(f"{module}/")}
        here = {
            str(file.relative_to(project))
            for file in (project / module).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts and file.suffix not in (".nbi", ".nbc")
        }
        assert inside == here


@pytest.mark.slow
def test_a_plain_install_from_wheels_can_run_and_names_what_it_lacks(wheels: Path, tmp_path: Path) -> None:
    python, installed = installed_from(wheels, tmp_path, "neurogen")
    assert installed == {"neurogen", *PLAIN}
    run = ["-m", "neurogen", "run", "--prompt", "Once upon a time", "--max-new-tokens", "2", "-s"]
    done = program(python, *run, "topk")
    assert done.returncode == 0, done.stderr
    refused = program(python, *run, "minp")
    assert refused.returncode == 1
    assert "'minp' comes with `pip install neurogen-minp`." in refused.stderr


@pytest.mark.slow
def test_the_extra_samplers_installs_all_from_wheels(wheels: Path, tmp_path: Path) -> None:
    python, installed = installed_from(wheels, tmp_path, "neurogen[samplers]")
    assert installed == {"neurogen", *of_samplers(ROOT).values()}
    listed = {
        entry["name"]: entry for entry in json.loads(program(python, "-m", "neurogen", "plugins", "--json").stdout)
    }
    assert {listed[name]["status"] for name in of_samplers(ROOT)} == {"loaded"}


def installed_from(wheels: Path, folder: Path, asked: str) -> tuple[Path, set[str]]:
    """The Python of a new environment into which pip installed this from the wheels, and what of ours is in it.

    Everything that is not ours is borrowed from the environment of this process.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv/bin/python"
    (site,) = folder.glob("venv/lib/python*/site-packages")
    borrow(site)
    pip(python, "install", "--no-index", "--no-cache-dir", "--find-links", str(wheels), asked)
    return python, {canonical(path) for path in site.glob("neurogen*.dist-info")}


def program(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python away from the repository, and without what leads back to it."""
    here = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, *arguments], capture_output=True, text=True, cwd=python.parent, env=here)


def canonical(info: Path) -> str:
    return canonicalize_name(info.name.partition("-")[0])


def borrow(site: Path) -> None:
    """Link everything that is installed here and not ours, pip included, into another environment."""
    for folder in map(Path, dict.fromkeys(distribution(name).locate_file("") for name in ("torch", "pip"))):
        for path in folder.iterdir():
            ours = path.name.startswith(("neurogen", "__editable__", "zz_"))
            if not ours and not (site / path.name).exists():
                (site / path.name).symlink_to(path)


def test_core_and_samplers_have_one_version() -> None:
    projects = [ROOT, *sorted((ROOT / "plugins").iterdir()), ROOT / "integrations/neurogen-vllm"]
    assert {declared(project)["version"] for project in projects} == {neurogen.__version__}
