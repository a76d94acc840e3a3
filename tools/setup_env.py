"""Set up .venv with everything that the Makefile's commands need; quick when it stands already.

Runs under the system's Python, whatever its version, and with its standard library alone.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# setup.py runs in .venv (--no-build-isolation), so that one torch serves for the build and for the run.
BUILD_TOOLS = ["pip>=23", "setuptools>=77", "wheel", "cmake>=3.26", "ninja", "numpy"]
PACKAGE_FILES = ["pyproject.toml", "setup.py", "tools/setup_env.py"]
NATIVE_FILES = ["CMakeLists.txt", "setup.py", "cmake/*", "csrc/**/*"]
NETWORK = (
    f"Check the network connection and pip's index settings ({PYTHON} -m pip config list), then try again."
)


def say(text):
    print("==> " + text, flush=True)


def stop(text):
    sys.exit("tokops: " + text)


def check_python():
    if sys.version_info < (3, 10):  # noqa: UP036 (an older one is what this sentence is for)
        version = ".".join(map(str, sys.version_info[:2]))
        stop(
            f"Python 3.10 or newer is needed, and {sys.executable} is {version}. "
            "Name another one: make PYTHON=python3.12"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(
            f"this Python ({sys.executable}) cannot make virtual environments. Install its venv module "
            "(Debian, Ubuntu: apt install python3-venv), or name another one: make PYTHON=python3.12"
        )


def check_headers():
    """Python's own headers, which the automata are compiled against."""
    import sysconfig

    folder = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(folder, "Python.h")):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stop(
            f"Python.h was not found in {folder}. Install Python's headers "
            f"(Debian, Ubuntu: apt install python{version}-dev; Fedora: dnf install python3-devel)."
        )


def find_compiler():
    """The C++ compiler, tried on a line of C++20."""
    named = os.environ.get("CXX")
    found = [path for path in map(shutil.which, [named] if named else ["c++", "g++", "clang++"]) if path]
    hint = "Install g++ 11 or newer (Debian, Ubuntu: apt install g++), or name one: make CXX=g++-12"
    if not found:
        under = f" under the name CXX={named}" if named else ""
        stop(f"no C++ compiler was found{under}. {hint}")
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "try.cpp")
        source.write_text("#include <concepts>\nstatic_assert(std::integral<int>);\nint main() {}\n")
        command = [found[0], "-std=c++20", str(source), "-o", str(source.with_suffix(""))]
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            stop(f"{found[0]} does not compile C++20. {hint}")
    return found[0]


def venv_stands():
    """Whether .venv is there; one that does not work is left for its owner to delete."""
    if not VENV.exists():
        return False
    version = "import sys; sys.exit(sys.version_info < (3, 10))"
    if PYTHON.exists() and subprocess.run([str(PYTHON), "-c", version]).returncode == 0:
        return True
    return stop(f"{VENV} is no working environment with Python 3.10 or newer. Delete it and run make again.")


def make_venv():
    say("making .venv with Python {}.{}".format(*sys.version_info))
    if subprocess.run([sys.executable, "-m", "venv", str(VENV)]).returncode:
        shutil.rmtree(str(VENV), ignore_errors=True)
        stop(f"{sys.executable} -m venv .venv failed; its message stands above.")


def run_python(arguments, environment=None):
    """Whether .venv's Python succeeded; its output goes to the terminal."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", **(environment or {}))
    return subprocess.run([str(PYTHON), *arguments], env=environment, cwd=str(ROOT)).returncode == 0


def install(what, arguments):
    say(what)
    if not run_python(["-m", "pip", "install", *arguments]):
        stop(f"pip could not install {' '.join(arguments)}. {NETWORK}")


def digest(patterns, extra=""):
    """One number for the contents of the files; a changed, new or deleted file changes it."""
    files = sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()})
    state = hashlib.sha256(extra.encode())
    for path in files:
        state.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest()


def is_done(stamp, state):
    return stamp.exists() and stamp.read_text() == state


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip installs where .venv has no torch")
    options = parser.parse_args()
    packages, native = VENV / "tokops-packages", VENV / "tokops-native"
    packages_state = digest(PACKAGE_FILES)
    native_state = digest(NATIVE_FILES, packages_state)
    if PYTHON.exists() and is_done(packages, packages_state) and is_done(native, native_state):
        return
    stands = venv_stands()
    if not stands:
        check_python()
    check_headers()
    compiler = {"CXX": find_compiler()}
    if not stands:
        make_venv()
    if not is_done(packages, packages_state):
        install("installing the build tools", BUILD_TOOLS)
        has_torch = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
        if not run_python(["-c", has_torch]):
            install(f"installing {options.torch}", options.torch.split())
    say(f"building the native code with {compiler['CXX']}")
    if not run_python(["setup.py", "-q", "build_ext", "--inplace"], compiler):
        stop("the native code did not build; the compiler's messages stand above.")
    if not is_done(packages, packages_state):
        say("installing tokops and what its tests and the demo need")
        if not run_python(["-m", "pip", "install", "--no-build-isolation", "-e", ".[dev]"], compiler):
            stop("pip could not install the packages named in pyproject.toml. " + NETWORK)
        packages.write_text(packages_state)
    native.write_text(native_state)


if __name__ == "__main__":
    main()
