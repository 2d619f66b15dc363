"""Builds the CPU kernels, a plain C library without Python or PyTorch headers; everything else is in pyproject.toml.

A wheel with them is for one platform and every Python.

The kernels are optional: without a C++ compiler, or on Windows, the package installs all the same and runs on PyTorch
operations (``pmsn_plugins.backends()`` says so).
"""

import os
import platform
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

SOURCE = "pmsn_plugins/kernels/csrc/"
SOURCES = runpy.run_path("pmsn_plugins/kernels/sources.py")
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fvisibility=hidden", "-fPIC", "-g0", "-pthread"]
FLAGS += ["-Wno-psabi", "-Wno-uninitialized"]  # lanes in the ABI; intrinsics of GCC 12

# every instruction set is compiled from the same source; the library picks one when it is loaded
INSTRUCTION_SETS = {"baseline": ["-DPMSN_LANE_BYTES=16"]}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-DPMSN_LANE_BYTES=32", "-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = [
        *("-DPMSN_LANE_BYTES=64", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"),
        "-mprefer-vector-width=512",
    ]


class BuildKernels(build_ext):
    """Compiles one source several times, with other flags, into one library with a fixed name."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, extension: Extension) -> None:
        library = [f'-DPMSN_SOURCES="{SOURCES["sources_stamp"](Path(SOURCE))}"']
        library += ["-DPMSN_CHOOSE_AVX"] if "avx2" in INSTRUCTION_SETS else []
        jobs = [(SOURCE + "cpu_library.cpp", "", library), (SOURCE + "cpu_pool.cpp", "", [])]
        jobs += [
            (SOURCE + "cpu_kernels.cpp", name, [f"-DPMSN_ISA={name}", *flags])
            for name, flags in INSTRUCTION_SETS.items()
        ]

        def compile_one(job: tuple[str, str, list[str]]) -> list[str]:
            source, folder, flags = job
            output = os.path.join(self.build_temp, folder)
            return self.compiler.compile([source], output, extra_postargs=FLAGS + flags, depends=extension.depends)

        with ThreadPoolExecutor() as pool:
            objects = [path for paths in pool.map(compile_one, jobs) for path in paths]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(extension.name), extra_postargs=["-pthread"], target_lang="c++"
        )


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


class SourcesWithTests(sdist):
    def make_distribution(self) -> None:
        for folder in ("tests", "examples"):
            self.filelist.graft(folder)
        self.filelist.global_exclude("*.py[co]")
        self.filelist.extend(["CHANGELOG.md", "CITATION.cff"])
        super().make_distribution()


kernels = Extension(
    "pmsn_plugins.kernels._cpu",
    [SOURCE + "cpu_kernels.cpp"],
    depends=[str(path) for path in SOURCES["library_sources"](Path(SOURCE))],
    optional=True,
)
setup(
    ext_modules=[] if sys.platform == "win32" else [kernels],
    cmdclass={"bdist_wheel": PlatformWheel, "build_ext": BuildKernels, "sdist": SourcesWithTests},
)
