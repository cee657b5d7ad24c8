"""What is written in C: the program that the spawner starts sandboxes with, and a module.

The executor does without either, if more slowly. All else is in pyproject.toml.
"""

from __future__ import annotations

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O2", "-Wall", "-Wextra", "-std=gnu11"]
HARDENING = ["-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
# By the last part of their names, which is all that some calls are told.
PROGRAMS = {"starter"}


class BuildPrograms(build_ext):
    """Builds programs, too: small ones, without libraries to load."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where the program is, and will be looked for: beside the modules of its package."""
        if fullname.rpartition(".")[2] not in PROGRAMS:
            return super().get_ext_filename(fullname)
        return os.path.join(*fullname.split(".")) + ".bin"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        if ext.name.rpartition(".")[2] not in PROGRAMS:
            super().build_extension(ext)
            return
        objects = self.compiler.compile(
            ext.sources,
            output_dir=self.build_temp,
            extra_postargs=ext.extra_compile_args,
            depends=ext.depends,
        )
        path = self.get_ext_fullpath(ext.name)
        self.compiler.link_executable(
            objects, os.path.basename(path), os.path.dirname(path), extra_postargs=["-static-pie"]
        )


setup(
    ext_modules=[
        Extension(
            "sandbox.starter",
            ["sandbox/starter.c"],
            extra_compile_args=[*FLAGS, *HARDENING, "-fPIE"],
        ),
        Extension(
            "executor.native.compiled",
            ["executor/native/compiled.c"],
            extra_compile_args=[*FLAGS, *HARDENING],
            extra_link_args=["-Wl,-z,relro,-z,now"],
        ),
    ],
    cmdclass={"build_ext": BuildPrograms},
)
