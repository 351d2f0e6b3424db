"""Discovery and loading of plugins: every way to be broken is one clear error for who uses it, and none for others.

Packages are written to a folder on sys.path, with metadata as pip leaves it; importlib.metadata discovers them.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import neurogen
from neurogen import ContractError, NeurogenError, Param, ParameterError, PluginError, Registry, Sampler, SamplerParams

LOGITS = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
VERSION = "1.0"
OK = """
import torch

import neurogen


class Chooser(neurogen.Sampler):
    name = "NAME"
    api_version = 1

    class Params(neurogen.SamplerParams):
        share: float = neurogen.Param(0.5, ge=0, le=1, description="A share.")

    def _sample(self, logits, seed, position, params):
        return torch.zeros(len(logits), dtype=torch.int64)

    def _probs(self, logits, params):
        return self._support(logits, params).float()

    def _support(self, logits, params):
        return torch.arange(logits.shape[1]).expand(logits.shape) == 0


@neurogen.hookimpl
def neurogen_samplers():
    return [Chooser]
"""


class Packages:
    """A folder on sys.path into which tests install packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, distribution: str, source: str | None, *names: str, module: str | None = None) -> str:
        """Install one distribution whose module stands behind the entry points `names`; None writes no module.

        Returns:
            The name of its module.
        """
        module = module or distribution.replace("-", "_")
        if source is not None:
            (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{distribution.replace('-', '_')}-{VERSION}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {VERSION}\n")
        points = "".join(f"{name} = {module}\n" for name in names)
        (info / "entry_points.txt").write_text(f"[neurogen.samplers]\n{points}")
        importlib.invalidate_caches()
        return module


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    before = set(sys.modules)
    monkeypatch.delenv("NEUROGEN_DISABLE_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield Packages(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def working(name: str) -> str:
    """The source of a plugin that works."""
    return OK.replace("NAME", name)


def edited(name: str, old: str, new: str) -> str:
    """The source of a plugin that works but for one edit."""
    source = working(name)
    assert source.count(old) == 1
    return source.replace(old, new)


ZEROS = "return torch.zeros(len(logits), dtype=torch.int64)"
PARAM = 'share: float = neurogen.Param(0.5, ge=0, le=1, description="A share.")'


class Broken(NamedTuple):
    """A way to be broken: one edit of a plugin that works, the error it ends in, and when."""

    old: str
    new: str
    error: type[NeurogenError]
    cause: str
    when: str = "load"


BROKEN = {
    "import-error": Broken("import torch", "import torch\n1 / 0", PluginError, "raised ZeroDivisionError: division"),
    "missing-dependency": Broken(
        "import torch",
        "import torch\nimport nowhere_to_be_found",
        PluginError,
        r"it needs the module 'nowhere_to_be_found', which is not installed \(pip install it\)",
    ),
    "wrong-version": Broken(
        "api_version = 1", "api_version = 2", PluginError, "api_version is 2 and this neurogen speaks 1; install a"
    ),
    "no-version": Broken("api_version = 1", "", PluginError, "api_version is None and this neurogen speaks 1"),
    "no-sampler": Broken("[Chooser]", "[dict]", PluginError, "<class 'dict'> is not a subclass of neurogen.Sampler"),
    "instance": Broken("[Chooser]", "[Chooser()]", PluginError, r"is not a subclass of neurogen.Sampler"),
    "missing-method": Broken("def _sample", "def choose", PluginError, r"does not implement _sample\(\)"),
    "missing-support": Broken("def _support", "def rest", PluginError, r"does not implement _support\(\)"),
    "no-state": Broken("api_version = 1", "api_version = 1; stateful = True", PluginError, r"implement new_state\(\)"),
    "no-keep": Broken("neurogen.Sampler)", "neurogen.TruncationSampler)", PluginError, r"does not implement keep\(\)"),
    "no-name": Broken('name = "no-name"', "", PluginError, "Chooser.name must be letters, digits, - and _, got None"),
    "bad-name": Broken('name = "bad-name"', 'name = "a b"', PluginError, "must be letters, digits, - and _, got 'a b'"),
    "bad-dtypes": Broken("api_version = 1", "api_version = 1; dtypes = 32", PluginError, "dtypes must be some of"),
    "no-dtypes": Broken("api_version = 1", "api_version = 1; dtypes = ()", PluginError, "dtypes must be some of"),
    "bad-deterministic": Broken(
        "api_version = 1", "api_version = 1; deterministic = 'no'", PluginError, "must be True or False"
    ),
    "bad-schema": Broken("neurogen.SamplerParams", "dict", PluginError, "Params must be a subclass of neurogen.Sam"),
    "no-description": Broken(PARAM, "share: float = 0.5", PluginError, "the parameter 'share' has no description"),
    "reserved-name": Broken(PARAM, PARAM.replace("share", "name"), PluginError, "'name' has a name that neurogen uses"),
    "reserved-self": Broken(PARAM, PARAM.replace("share", "self"), PluginError, "'self' has a name that neurogen uses"),
    "reserved": Broken(PARAM, PARAM.replace("share", "seed"), PluginError, "'seed' has a name that neurogen uses"),
    "no-default": Broken(PARAM, PARAM.replace("0.5", "..."), PluginError, "the parameter 'share' has no default"),
    "default-outside": Broken(
        PARAM, PARAM.replace("0.5", "1.5"), PluginError, "the defaults of its parameters do not fit their bounds"
    ),
    "default-nan": Broken(PARAM, PARAM.replace("0.5", "float('nan')"), PluginError, "do not fit their bounds"),
    "bad-type": Broken(PARAM, PARAM.replace("float", "list"), PluginError, "'share' must be an int, float, bool or"),
    "bad-validator": Broken(
        PARAM, f"{PARAM}\n        def model_post_init(self, context): raise OSError('disk')", PluginError, "disk"
    ),
    "exit-at-import": Broken("import torch", "import sys; sys.exit(3)", PluginError, "raised SystemExit: 3"),
    "exit-in-hook": Broken("return [Chooser]", "raise SystemExit(3)", PluginError, "hook .* raised SystemExit: 3"),
    "hook-raises": Broken("return [Chooser]", "raise OSError('x')", PluginError, "neurogen_samplers raised OSError: x"),
    "hook-arguments": Broken("samplers():", "samplers(model):", PluginError, "does not fit the hook spec: .*'model'"),
    "unknown-hook": Broken("neurogen_samplers():", "neurogen_models():", PluginError, "implements neurogen_models, w"),
    "no-hook": Broken("@neurogen.hookimpl", "", PluginError, "marked with neurogen.hookimpl, and marks none"),
    "hook-none": Broken("[Chooser]", "None", PluginError, "returned None, not a list of sampler classes"),
    "hook-class": Broken("[Chooser]", "Chooser", PluginError, "not a list of sampler classes"),
    "hook-empty": Broken("[Chooser]", "[]", PluginError, "returned nothing, not a sampler named 'hook-empty'"),
    "other-name": Broken('"other-name"', '"another"', PluginError, "returned 'another', not a sampler named 'other-n"),
    "raises": Broken(ZEROS, "raise OSError('y')", PluginError, "failed in sample: OSError: y.*choose", "sample"),
    "wrong-shape": Broken("zeros(len(logits)", "zeros(9", ContractError, r"must return .*\[2\].*got .*\[9\]", "sample"),
    "wrong-dtype": Broken("torch.int64", "torch.int32", ContractError, r"torch.int64 .*got torch.int32", "sample"),
    "no-tensor": Broken(ZEROS, "return [0, 0]", ContractError, "must return a tensor .*got list", "sample"),
    "outside": Broken(ZEROS, ZEROS + " + 3", ContractError, "the id 3 in row 0; ids .* are 0 to 2", "sample"),
    "negative": Broken(ZEROS, ZEROS + " - 2", ContractError, "the id -2 in row 0; ids .* are 0 to 2", "sample"),
    "gives-up": Broken(ZEROS, ZEROS + " - 1", ContractError, r"kept no token in row\(s\) \[0, 1\]", "sample"),
}


def install_broken(packages: Packages, name: str) -> str:
    return packages.add(f"broken-{name}", edited(name, BROKEN[name].old, BROKEN[name].new), name)


def install_all(packages: Packages) -> list[str]:
    """Every broken package at once, with two that offer the same name and one entry point to nothing."""
    modules = [install_broken(packages, name) for name in BROKEN]
    modules += [packages.add(f"twin-{i}", working("twin"), "twin") for i in (1, 2)]
    return [*modules, packages.add("broken-nothing", None, "nothing")]


def test_plugin_that_the_broken_ones_are_edits_of_works(packages: Packages) -> None:
    packages.add("honest", working("chooser"), "chooser")
    sampler = Registry().load_sampler("chooser")
    assert sampler.origin == "honest 1.0"
    assert sampler.sample(LOGITS).tolist() == [0, 0]
    assert sampler.support(LOGITS).sum() == 2


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugin_is_one_named_error_when_used(packages: Packages, name: str) -> None:
    install_broken(packages, name)
    registry = Registry()
    broken = BROKEN[name]
    if broken.when == "sample":
        sampler = registry.load_sampler(name)
        with pytest.raises(NeurogenError, match=broken.cause) as caught:
            sampler.sample(LOGITS)
    else:
        with pytest.raises(NeurogenError, match=broken.cause) as caught:
            registry.load_sampler(name)
        assert f"'{name}'" in str(caught.value)
        assert "Update or uninstall that package, or leave it out with NEUROGEN_DISABLE_PLUGINS" in str(caught.value)
    assert type(caught.value) is broken.error
    assert f"broken-{name} 1.0" in str(caught.value)


@pytest.mark.parametrize("name", [name for name in BROKEN if BROKEN[name].when == "load"])
def test_failed_plugin_fails_the_same_way_again(packages: Packages, name: str) -> None:
    install_broken(packages, name)
    registry = Registry()
    messages = []
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            registry.load_class(name)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    (plugin,) = [plugin for plugin in registry.plugins() if plugin.name == name]
    assert (plugin.status, plugin.error) == ("failed", messages[0])


@pytest.mark.parametrize("name", ["hook-arguments", "unknown-hook", "no-hook", "hook-raises", "wrong-version"])
def test_second_sampler_of_a_broken_module_has_the_same_cause(packages: Packages, name: str) -> None:
    broken = BROKEN[name]
    packages.add("broken", edited("one", broken.old, broken.new), "one", "two")
    registry = Registry()
    for sampler in ("one", "two"):
        with pytest.raises(PluginError, match=broken.cause):
            registry.load_class(sampler)


def test_name_offered_twice_is_an_error_that_says_how_to_choose(packages: Packages) -> None:
    packages.add("twin-a", working("twin"), "twin")
    packages.add("twin-b", working("twin"), "twin")
    registry = Registry()
    with pytest.raises(PluginError, match=r"twin-a 1.0 \(twin_a\) and twin-b 1.0 \(twin_b\).*'twin-a:twin' or 'twin-b"):
        registry.load_sampler("twin")
    assert "twin_a" not in sys.modules
    assert registry.load_sampler("twin-b:twin").origin == "twin-b 1.0"
    assert "twin_a" not in sys.modules
    assert registry.load_sampler("Twin_A:twin").origin == "twin-a 1.0"
    assert registry.load_class("twin-a:twin") is not registry.load_class("twin-b:twin")


def test_entry_point_to_nothing_is_an_error_that_says_so(packages: Packages) -> None:
    packages.add("hollow", None, "hollow", module="hollow_pkg.inner")
    with pytest.raises(PluginError, match=r"'hollow' of hollow 1.0 .*names 'hollow_pkg.inner', which does not exist"):
        Registry().load_sampler("hollow")


@pytest.mark.parametrize("value", ["honest:absent", "not a module!", "honest:"])
def test_entry_point_value_that_cannot_be_loaded_is_a_plugin_error(packages: Packages, value: str) -> None:
    (packages.folder / "honest.py").write_text(working("chooser"))
    packages.add("odd", None, "odd", module=value)
    with pytest.raises(PluginError, match=r"'odd' of odd 1\.0"):
        Registry().load_sampler("odd")


def test_all_broken_plugins_at_once_harm_nobody(packages: Packages) -> None:
    modules = install_all(packages)
    registry = Registry()
    assert registry.load_sampler("greedy").sample(LOGITS).tolist() == [2, 0]
    found = {plugin.name: plugin for plugin in registry.plugins()}
    assert set(found) >= {*BROKEN, "twin", "nothing", "greedy", "topk", "topp"}
    assert found["greedy"].status == "loaded"
    assert {found[name].status for name in (*BROKEN, "twin", "nothing")} == {"found"}
    assert not set(modules) & set(sys.modules)


def test_loading_all_records_every_failure_and_raises_none(packages: Packages) -> None:
    install_all(packages)
    plugins = {plugin.name: plugin for plugin in Registry().load_all()}
    for name, broken in BROKEN.items():
        assert plugins[name].status == ("failed" if broken.when == "load" else "loaded"), name
        assert plugins[name].load_seconds is not None
    assert plugins["nothing"].status == "failed"
    assert {plugins[name].status for name in ("greedy", "topk", "topp", "twin")} == {"loaded"}


def test_broken_plugins_leave_the_command_line_alone(packages: Packages) -> None:
    install_all(packages)
    script = f"import sys; sys.path.insert(0, {str(packages.folder)!r}); from neurogen.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "plugins"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "broken-import-error" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_interrupt_while_importing_is_not_swallowed(packages: Packages) -> None:
    packages.add("slow", "raise KeyboardInterrupt", "slow")
    with pytest.raises(KeyboardInterrupt):
        Registry().load_class("slow")


def test_module_behind_several_names_gives_each_its_class(packages: Packages) -> None:
    second = "\n\nclass Second(Chooser):\n    name = 'two'\n"
    source = working("one").replace("\n\n@neurogen", f"{second}\n\n@neurogen").replace("[Chooser]", "[Second, Chooser]")
    packages.add("pair", source, "one", "two", "three")
    registry = Registry()
    assert registry.load_class("two").__name__ == "Second"
    assert registry.load_class("one").__name__ == "Chooser"
    assert issubclass(registry.load_class("two"), registry.load_class("one"))
    with pytest.raises(PluginError, match="returned 'one', 'two', not a sampler named 'three'"):
        registry.load_class("three")


def test_unknown_name_lists_what_is_installed_and_suggests_the_nearest(packages: Packages) -> None:
    packages.add("honest", working("mirostat"), "mirostat")
    with pytest.raises(PluginError, match="no sampler 'mirostta'") as caught:
        Registry().find("mirostta")
    message = str(caught.value)
    assert "Did you mean 'mirostat'?" in message
    for name in ("greedy", "mirostat", "topk", "topp"):
        assert name in message.split("Installed:")[1].split(".")[0]
    with pytest.raises(PluginError) as caught:
        Registry().find("zzzzzz")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(PluginError, match="no sampler 'topk:mirostat'"):
        Registry().find("topk:mirostat")


@pytest.mark.parametrize("name", [None, 3, b"topk"])
def test_a_name_that_is_no_text_is_refused_with_what_is_installed(name: Any) -> None:
    with pytest.raises(PluginError, match=r"by its name, a text, got .*\. Installed: .*topk") as refused:
        neurogen.load_sampler(name)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize("name", ["self", "share"])
def test_a_parameter_that_does_not_exist_is_a_parameter_error_whatever_its_name(name: str) -> None:
    with pytest.raises(ParameterError, match=f"topk has no parameter {name!r}; it has: k, temperature."):
        neurogen.load_sampler("topk", **{name: 1})
    sampler = neurogen.load_sampler("topk")
    for call in (sampler.sample, sampler.probs, sampler.support):
        with pytest.raises(ParameterError, match=f"topk has no parameter {name!r}"):
            call(LOGITS, **{name: 1})


def test_environment_without_plugins_says_what_to_install() -> None:
    with pytest.raises(
        PluginError, match=r"'greedy'. No sampler plugin is installed. Install one, for example `pip install"
    ):
        Registry(entry_points=()).load_sampler("greedy")


@pytest.mark.parametrize(
    ("value", "left_out"),
    [
        ("twin", {"twin-a:twin", "twin-b:twin"}),
        ("twin-a", {"twin-a:twin", "twin-a:extra"}),
        ("Twin_A", {"twin-a:twin", "twin-a:extra"}),
        ("twin-b:twin", {"twin-b:twin"}),
        (" twin-b:twin , extra,,", {"twin-b:twin", "twin-a:extra"}),
        ("neurogen-topk,twin", {"neurogen-topk:topk", "twin-a:twin", "twin-b:twin"}),
        ("", set()),
    ],
)
def test_variable_leaves_plugins_out(
    packages: Packages, monkeypatch: pytest.MonkeyPatch, value: str, left_out: set[str]
) -> None:
    packages.add("twin-a", working("twin"), "twin", "extra")
    packages.add("twin-b", working("twin"), "twin")
    monkeypatch.setenv("NEUROGEN_DISABLE_PLUGINS", value)
    registry = Registry()
    disabled = {plugin.qualified_name for plugin in registry.plugins() if plugin.status == "disabled"}
    assert disabled == left_out
    registry.load_all()
    for name in left_out:
        with pytest.raises(PluginError, match=r"is disabled: left out by NEUROGEN_DISABLE_PLUGINS. Change that"):
            registry.load_class(name)
    assert ("twin_b" in sys.modules) == ("twin-b:twin" not in left_out)


def test_what_is_left_out_and_nowhere_installed_is_known(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.add("twin-a", working("twin"), "twin", "extra")
    monkeypatch.setenv("NEUROGEN_DISABLE_PLUGINS", "tpok, twin ,twin-b:twin,Twin_A,twin-a:extra")
    assert Registry().unused_exclusions() == ["tpok", "twin-b:twin"]


def test_leaving_one_of_two_out_settles_which_is_meant(packages: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.add("twin-a", working("twin"), "twin")
    packages.add("twin-b", working("twin"), "twin")
    monkeypatch.setenv("NEUROGEN_DISABLE_PLUGINS", "twin-a")
    assert Registry().load_sampler("twin").origin == "twin-b 1.0"


def test_plugin_is_imported_when_first_needed(packages: Packages) -> None:
    module = packages.add("honest", working("chooser"), "chooser")
    registry = Registry()
    assert registry.find("chooser").status == "found"
    assert module not in sys.modules
    registry.load_class("chooser")
    assert registry.find("chooser").status == "loaded"
    assert module in sys.modules


def test_threads_that_load_at_once_get_one_class(packages: Packages) -> None:
    slow = "calls.append(1)\n    time.sleep(0.05)\n    return [Chooser]"
    source = edited("chooser", "return [Chooser]", slow) + "\n\nimport time\n\ncalls = []\n"
    module = packages.add("honest", source, "chooser")
    registry = Registry()
    with ThreadPoolExecutor(8) as pool:
        classes = list(pool.map(lambda _: registry.load_class("chooser"), range(8)))
    assert len(set(classes)) == 1
    assert sys.modules[module].calls == [1]


class InProcess(Sampler):
    name = "local"
    api_version = 1

    class Params(SamplerParams):
        token: int = Param(1, ge=0, description="What to choose.")

    def _sample(self, logits: Any, seed: Any, position: Any, params: Any, *state: Any) -> Any:
        return params.token

    def _probs(self, logits: Any, params: Any) -> Any:
        return torch.nn.functional.one_hot(params.token, logits.shape[1]).float()

    def _support(self, logits: Any, params: Any) -> Any:
        return self._probs(logits, params) > 0


def module_of(*classes: Any) -> types.ModuleType:
    module = types.ModuleType("local_module")
    exec("def neurogen_samplers(): return classes", vars(module))
    module.classes = list(classes)  # type: ignore[attr-defined]
    neurogen.hookimpl(module.neurogen_samplers)
    return module


def test_registered_module_is_used_without_being_installed() -> None:
    registry = Registry()
    registry.register(module_of(InProcess))
    sampler = registry.load_sampler("local", token=2)
    assert sampler.origin == "registered in this process -"
    assert sampler.sample(LOGITS, token=torch.tensor([0, 2])).tolist() == [0, 2]
    assert "local" not in {plugin.name for plugin in Registry().plugins()}


def test_registered_object_with_a_hook_is_enough() -> None:
    class Offer:
        @neurogen.hookimpl
        def neurogen_samplers(self) -> list[type[Sampler]]:
            return [InProcess]

    registry = Registry(entry_points=())
    registry.register(Offer(), distribution="notebook", version="7")
    assert registry.load_sampler("local").origin == "notebook 7"


def test_registering_what_is_broken_is_refused_at_once() -> None:
    registry = Registry(entry_points=())
    with pytest.raises(PluginError, match=r"notebook 7 .*<class 'int'> is not a subclass of neurogen.Sampler"):
        registry.register(module_of(InProcess, int), distribution="notebook", version="7")
    with pytest.raises(PluginError, match="marks none"):
        registry.register(types.ModuleType("empty"))
    with pytest.raises(PluginError, match="nothing to register: None was given"):
        registry.register(None)
    assert registry.plugins() == []


def test_registered_name_that_is_installed_too_must_be_qualified() -> None:
    class Greedy(InProcess):
        name = "greedy"

    registry = Registry()
    registry.register(module_of(Greedy), distribution="notebook")
    with pytest.raises(PluginError, match="'neurogen-greedy:greedy' or 'notebook:greedy'"):
        registry.load_class("greedy")
    assert registry.load_class("notebook:greedy") is Greedy
