"""The `tokops` program: what it finds, and what it says without its extra."""

import os
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import tokops
from tokops import _native

pytest.importorskip("typer", reason="the extra `hf` is not installed")
from typer.testing import CliRunner

from tokops import cli, commands


def run(*arguments: str, **environment: str | None) -> str:
    result = CliRunner().invoke(cli.build(), list(arguments), env={"COLUMNS": "200", **environment})
    assert result.exit_code == 0, result.output
    return result.output


def test_every_module_is_a_command():
    listed = run("--help")
    for module in pkgutil.iter_modules(commands.__path__):
        assert f" {module.name.replace('_', '-')} " in listed


def test_info_names_every_op_and_why():
    said = run("info")
    assert f"tokops {tokops.__version__}, torch " in said
    for op in _native.declared:
        assert f" {op} " in said
    for reason in _native.absent.values():
        assert reason in said
    if "cpu" in _native.loaded:
        assert "the best this CPU has" in said or "TOKOPS_CPU_ISA" in said


def in_new_process(code: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


INFO = "import sys; sys.argv = ['tokops', 'info']; from tokops.cli import main; main()"


def test_info_on_references():
    said = in_new_process(INFO, TOKOPS_REFERENCE="1").stdout
    assert "TOKOPS_REFERENCE=1 asks for the plain PyTorch references" in said
    assert " kernel " not in said


@pytest.mark.skipif("cpu" not in _native.loaded, reason="no native library in this process")
@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("base", "kernels for base (TOKOPS_CPU_ISA)"),
        ("mmx", "TOKOPS_CPU_ISA=mmx is unknown or more than this CPU has"),
    ],
)
def test_info_on_instruction_sets(asked, answer):
    said = in_new_process(INFO, TOKOPS_CPU_ISA=asked).stdout
    assert answer in said


def test_methods_lists_slots_and_options():
    said = run("methods")
    for name, method in tokops.methods.catalogue().items():
        assert f" {name} " in said
        for slot in method.slots:
            assert slot in said


@pytest.mark.parametrize("missing", cli.NEEDS)
def test_without_the_extra(missing):
    done = in_new_process(f"import sys; sys.modules[{missing!r}] = None; from tokops.cli import main; main()")
    assert done.returncode == 1
    expected = f"the tokops program needs {missing}, which the extra hf brings: pip install 'tokops[hf]'"
    assert done.stderr.strip() == expected


def test_a_command_is_added_by_its_file(tmp_path, monkeypatch):
    source = "def hello():\n    'Greet.'\n    print('hello there')\n\n\n"
    source += "def register(app):\n    app.command()(hello)\n"
    (tmp_path / "hello.py").write_text(source)
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert run("hello") == "hello there\n"
    monkeypatch.delitem(sys.modules, "tokops.commands.hello")


def test_installed_program_is_this_one():
    script = pathlib.Path(sys.executable).parent / "tokops"
    if not script.exists():
        pytest.skip("tokops is not installed into this environment")
    done = subprocess.run([script, "info"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith(f"tokops {tokops.__version__}")
