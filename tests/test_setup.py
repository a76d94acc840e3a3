"""tools/setup_env.py: it says what is missing in a sentence, and does nothing twice."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = "tools/setup_env.py"

pytestmark = pytest.mark.skipif(not (ROOT / SCRIPT).exists(), reason="not a checkout")


@pytest.fixture
def checkout(tmp_path):
    """As much of a checkout as the script looks at."""
    for name in (SCRIPT, "Makefile", "pyproject.toml", "setup.py", "CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "csrc" / "attention").mkdir(parents=True)
    (tmp_path / "csrc" / "attention" / "op.cpp").write_text("int one;\n")
    return tmp_path


def run(checkout: pathlib.Path, before: str = "", **environment: str) -> subprocess.CompletedProcess:
    """The script under this Python, after the statements `before`."""
    code = f"import runpy, sys\n{before}\nsys.argv = ['setup_env.py']\n"
    code += f"runpy.run_path({SCRIPT!r}, run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_old_python(checkout):
    done = run(checkout, "sys.version_info = (3, 8, 18, 'final', 0)")
    assert done.returncode == 1
    assert "tokops: Python 3.10 or newer is needed" in done.stderr
    assert "is 3.8. Name another one: make PYTHON=python3.12" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_venv_module(checkout):
    done = run(checkout, "sys.modules['ensurepip'] = None")
    assert done.returncode == 1
    assert "cannot make virtual environments. Install its venv module" in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_python(checkout):
    done = subprocess.run(
        ["make", "PYTHON=no-such-python", "setup"], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "tokops: no-such-python was not found. Install Python 3.10 or newer" in done.stderr


def test_no_compiler(checkout):
    done = run(checkout, PATH=str(checkout), CXX="")
    assert done.returncode == 1
    assert "tokops: no C++ compiler was found. Install g++ 11 or newer" in done.stderr
    assert not (checkout / ".venv").exists(), "found out before anything is made"


def test_named_compiler_missing(checkout):
    done = run(checkout, CXX="g++-999")
    assert done.returncode == 1
    assert "no C++ compiler was found under the name CXX=g++-999" in done.stderr


def test_compiler_without_cpp20(checkout):
    old = checkout / "old-g++"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = run(checkout, CXX=str(old))
    assert done.returncode == 1
    assert f"{old} does not compile C++20. Install g++ 11 or newer" in done.stderr


def test_broken_environment(checkout):
    (checkout / ".venv").mkdir()
    done = run(checkout)
    assert done.returncode == 1
    assert ".venv is no working environment with Python 3.10 or newer. Delete it" in done.stderr


@pytest.mark.slow
def test_no_index(checkout):
    no_network = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": ""}
    done = run(checkout, PIP_EXTRA_INDEX_URL="", **no_network)
    assert done.returncode == 1
    assert "==> making .venv with Python" in done.stdout
    assert "tokops: pip could not install" in done.stderr
    assert "Check the network connection and pip's index settings" in done.stderr


FAKE_PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  "-c "*find_spec*) exit {no_torch} ;;
  *build_ext*) exit {build} ;;
  *"-e .[dev]"*) exit {install} ;;
esac
"""


def fake_environment(checkout, no_torch=0, build=0, install=0) -> pathlib.Path:
    """A .venv whose python writes down what it is asked to do."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    log = checkout / "log"
    log.write_text("")
    python.write_text(FAKE_PYTHON.format(log=log, no_torch=no_torch, build=build, install=install))
    python.chmod(0o755)
    return log


def steps(log: pathlib.Path) -> list[str]:
    lines = [line for line in log.read_text().splitlines() if not line.startswith("-c ")]
    log.write_text("")
    return lines


def test_steps_and_nothing_twice(checkout):
    log = fake_environment(checkout, no_torch=1)
    first = run(checkout)
    assert first.returncode == 0, first.stderr
    tools, torch, build, package = steps(log)
    assert tools.startswith("-m pip install")
    assert "setuptools" in tools
    assert torch == "-m pip install torch==2.13.0"
    assert build == "setup.py -q build_ext --inplace"
    assert package == "-m pip install --no-build-isolation -e .[dev]"
    assert first.stdout.count("==> ") == 4, "every step is announced"

    second = run(checkout)
    assert (second.returncode, second.stdout, steps(log)) == (0, "", [])

    (checkout / "csrc" / "attention" / "new.cu").write_text("int two;\n")
    assert run(checkout).returncode == 0
    assert steps(log) == ["setup.py -q build_ext --inplace"], "a new source file rebuilds, and no more"

    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert run(checkout).returncode == 0
    assert len(steps(log)) == 4


def test_torch_that_stands_is_kept(checkout):
    log = fake_environment(checkout, no_torch=0)
    assert run(checkout).returncode == 0
    assert not [step for step in steps(log) if "torch==" in step]


def test_build_failure_is_told_and_tried_again(checkout):
    log = fake_environment(checkout, build=1)
    done = run(checkout)
    assert done.returncode == 1
    assert "tokops: the native code did not build" in done.stderr
    assert not [step for step in steps(log) if "-e ." in step]
    fake_environment(checkout)
    assert run(checkout).returncode == 0
    assert [step for step in steps(log) if "-e ." in step]


def test_packages_that_cannot_be_had(checkout):
    fake_environment(checkout, install=1)
    done = run(checkout)
    assert done.returncode == 1
    assert (
        "pip could not install the packages named in pyproject.toml. Check the network connection"
        in done.stderr
    )
