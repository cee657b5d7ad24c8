"""The program in C that the spawner starts sandboxes with; all else is in pyproject.toml."""

from __future__ import annotations

import os

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class BuildPrograms(build_ext):
    """Builds programs instead of modules: small ones, without libraries to load."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where the program is, and will be looked for: beside the modules of its package."""
        return os.path.join(*fullname.split(".")) + ".bin"

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        flags = ["-O2", "-Wall", "-Wextra", "-std=gnu11", "-fPIE"]
        flags += ["-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
        objects = self.compiler.compile(
            ext.sources, output_dir=self.build_temp, extra_postargs=flags, depends=ext.depends
        )
        path = self.get_ext_fullpath(ext.name)
        self.compiler.link_executable(
            objects, os.path.basename(path), os.path.dirname(path), extra_postargs=["-static-pie"]
        )


setup(
    ext_modules=[Extension("sandbox.starter", ["sandbox/starter.c"])],
    cmdclass={"build_ext": BuildPrograms},
)
