"""setuptools packages the Python; CMake and Ninja build everything native."""

import os
import pathlib
import shutil
import subprocess
import sysconfig

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = pathlib.Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Builds the libraries into ``tokops/lib``: of the source tree if editable, else of the wheel."""

    def run(self):
        import torch

        try:  # pip's cmake and ninja before older system ones
            import cmake
            import ninja

            os.environ["PATH"] = os.pathsep.join([cmake.CMAKE_BIN_DIR, ninja.BIN_DIR, os.environ["PATH"]])
        except ImportError:
            pass
        inplace = self.inplace or getattr(self, "editable_mode", False)
        package = HERE / "python/tokops" if inplace else pathlib.Path(self.build_lib).resolve() / "tokops"
        if not inplace:  # what an earlier build left there must not get into the wheel
            shutil.rmtree(package / "lib", ignore_errors=True)
        build = HERE / "build" / f"torch-{torch.__version__}"
        cuda = os.environ.get("TOKOPS_CUDA", "auto")
        if cuda == "auto":
            cuda = str(int(torch.version.cuda is not None and shutil.which("nvcc") is not None))
        configure = ["cmake", "-S", str(HERE), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DTORCH_DIR={pathlib.Path(torch.__file__).parent}", f"-DTOKOPS_OUT={package / 'lib'}"]
        configure += [f"-DTOKOPS_CUDA={'ON' if cuda == '1' else 'OFF'}"]
        configure += [f"-DPYTHON_INCLUDE={sysconfig.get_path('include')}"]
        configure += [f"-DPYTHON_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}"]
        if archs := os.environ.get("TOKOPS_CUDA_ARCHS"):
            configure.append(f"-DTOKOPS_CUDA_ARCHS={archs}")
        subprocess.check_call(configure)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        subprocess.check_call(["cmake", "--build", str(build), "-j", jobs])

    def get_outputs(self):  # CMake owns the files; setuptools must not look for its own
        return []

    def get_output_mapping(self):
        return {}


setup(
    package_dir={"": "python"},
    packages=find_packages("python"),
    ext_modules=[Extension("tokops._native_build", [])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)
