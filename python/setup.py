"""Builds the package, with the modelmeter program in it where MODELMETER_BUNDLE names that program.

    MODELMETER_BUNDLE=target/release/modelmeter pip wheel --no-deps ./python

A wheel with the program is for the platform that the program is for, and brings the command `modelmeter`; one without it is
for any platform. pyproject.toml has the rest.
"""

import os
import re
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
# Where a program for Linux says which machine it is for (ELF, e_machine).
MACHINES = {62: "x86_64", 183: "aarch64"}


def bundle():
    """The program to bundle; None: none was named."""
    named = os.environ.get("MODELMETER_BUNDLE")
    if not named:
        return None
    # pip builds in another folder than it was called in.
    folders = [Path(os.environ.get("PWD", ".")), HERE.parent, HERE]
    found = [path for path in (folder / named for folder in folders) if path.is_file()]
    if not found:
        raise SystemExit(f"MODELMETER_BUNDLE: there is no file {named} (build it with cargo build --release)")
    return found[0]


def platform_of(program):
    """The wheel's platform tag: the machine, and the oldest glibc that has what the program asks for."""
    content = program.read_bytes()
    machine = MACHINES.get(int.from_bytes(content[18:20], "little"))
    if content[:4] != b"\x7fELF" or machine is None:
        raise SystemExit(f"MODELMETER_BUNDLE: {program} is no program for Linux on {' or '.join(MACHINES.values())}")
    versions = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?=[.\0])", content)]
    return f"manylinux_2_{max(versions)}_{machine}" if versions else f"linux_{machine}"


PROGRAM = bundle()


class BuildWithProgram(build_py):
    def run(self):
        super().run()
        folder = Path(self.build_lib, "modelmeter", "bin")
        # What an earlier build left here would be packed, too.
        shutil.rmtree(folder, ignore_errors=True)
        if PROGRAM and not self.editable_mode:
            folder.mkdir(parents=True)
            shutil.copy(PROGRAM, folder / "modelmeter")
            (folder / "modelmeter").chmod(0o755)


class WithProgram(Distribution):
    def has_ext_modules(self):
        return PROGRAM is not None


class WheelOfProgram(bdist_wheel):
    def get_tag(self):
        return ("py3", "none", platform_of(PROGRAM)) if PROGRAM else super().get_tag()


setup(
    distclass=WithProgram,
    cmdclass={"build_py": BuildWithProgram, "bdist_wheel": WheelOfProgram},
    entry_points={"console_scripts": ["modelmeter = modelmeter.__main__:main"] if PROGRAM else []},
)
