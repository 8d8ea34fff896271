"""`pip install ./python` in an empty environment, and the tutorial there. Wheels come from scripts/setup, none from the network."""

import shutil
import subprocess
import sys
import tempfile
import unittest
import venv
import zipfile
from pathlib import Path

import support


class Installing(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        # A copy, so that no build leaves anything in the checkout, or takes what an earlier one left there.
        self.package = self.folder / "python"
        shutil.copytree(support.PACKAGE, self.package, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))

    def run_in(self, program, *arguments, **environment):
        """Runs a program in a folder of its own, with a home of its own; gives what it printed."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        env = {
            **support.environment(str(home)),
            "HOME": str(home),
            "PATH": f"{self.folder}/env/bin:/usr/bin:/bin",
            **environment,
        }
        env.pop("PYTHONPATH", None)
        done = subprocess.run([program, *arguments], cwd=home, env=env, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, f"{program} {arguments}\n{done.stdout}{done.stderr}")
        return done.stdout

    def pip(self, python, command, *arguments, **environment):
        offline = ["--quiet", "--disable-pip-version-check", "--no-index", "--find-links", support.wheels()]
        return self.run_in(python, "-m", "pip", command, *offline, *arguments, **environment)

    def test_the_tutorial_runs_where_nothing_but_the_package_is_installed(self):
        venv.create(self.folder / "env", with_pip=True)
        python = self.folder / "env/bin/python"
        self.pip(python, "install", f"{self.package}[pandas]", "onnx", MODELMETER_BUNDLE=support.binary())
        # The wheel brings the program as a command, too.
        self.assertIn("modelmeter 0", self.run_in(self.folder / "env/bin/modelmeter", "--version"))
        said = self.run_in(python, support.PACKAGE / "tests/notebook.py", support.PACKAGE / "tutorial.ipynb")
        self.assertRegex(said, r"\n[1-9]\d* answers were checked")
        for model in ("mlp", "classifier"):
            self.assertRegex(said, rf"{model}: batch size 8 gives .* x the throughput of 1")

    def test_wheels_say_what_they_are_for(self):
        out = self.folder / "out"
        self.pip(sys.executable, "wheel", "--no-deps", "-w", out, self.package, MODELMETER_BUNDLE=support.binary())
        self.pip(sys.executable, "wheel", "--no-deps", "-w", out, self.package)
        with_program, without = sorted(out.iterdir(), key=lambda wheel: wheel.name.endswith("-any.whl"))
        self.assertRegex(with_program.name, r"^modelmeter-.*-py3-none-manylinux_2_\d+_(x86_64|aarch64)\.whl$")
        self.assertRegex(without.name, r"^modelmeter-.*-py3-none-any\.whl$")
        names = {}
        for wheel in (with_program, without):
            with zipfile.ZipFile(wheel) as opened:
                names[wheel] = opened.namelist()
        self.assertIn("modelmeter/bin/modelmeter", names[with_program])
        self.assertNotIn("modelmeter/bin/modelmeter", names[without])
        self.assertIn("modelmeter/py.typed", names[without])

        # One without the program finds it elsewhere, or says what to do.
        self.pip(sys.executable, "install", "--no-deps", "--target", self.folder / "site", without)
        find = "from modelmeter import ModelmeterError, binary\ntry: print(binary.find())\nexcept ModelmeterError as error: print(error)"
        find = f"import sys; sys.path.insert(0, {str(self.folder / 'site')!r})\n{find}"
        self.assertIn("hint: install a wheel that carries it", self.run_in(sys.executable, "-c", find))
        (self.folder / "env/bin").mkdir(parents=True)
        (self.folder / "env/bin/modelmeter").symlink_to(support.binary())
        self.assertIn("env/bin/modelmeter", self.run_in(sys.executable, "-c", find), "on PATH")

    def test_what_cannot_be_bundled_is_said(self):
        for named, why in (("no/such/file", "there is no file"), (__file__, "is no program for Linux")):
            with self.assertRaises(AssertionError) as caught:
                self.pip(sys.executable, "wheel", "--no-deps", self.package, MODELMETER_BUNDLE=named)
            self.assertIn(why, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
