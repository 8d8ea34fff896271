"""The package on each Python that it states and that is on this machine: `python3.N` on PATH."""

import os
import subprocess
import sys
import unittest

import support
from test_types import stated


def runs(python):
    """Whether there is such a Python; a version manager may only have a word about it."""
    try:
        return subprocess.run([python, "-c", "import ensurepip"], capture_output=True).returncode == 0
    except OSError:
        return False


class Versions(unittest.TestCase):
    def test_inspectors_and_profiles_need_nothing_but_the_standard_library(self):
        env = {**os.environ, "MODELMETER_BINARY": support.binary()}
        folder = str(support.PACKAGE / "tests")
        lacking = []
        for version in stated():
            python = "python{}.{}".format(*version)
            if not runs(python):
                lacking.append(python)
                continue
            with self.subTest(python):
                for tests in ("test_package", "test_profiler.Profiling.test_an_instance_stays_in_this_process"):
                    command = [python, "-I", "-W", "error::DeprecationWarning:modelmeter", "-c"]
                    command.append(
                        f"import sys; sys.path.insert(0, {folder!r}); import unittest; unittest.main(None, None, ['', {tests!r}])"
                    )
                    done = subprocess.run(command, env=env, capture_output=True, text=True)
                    self.assertEqual(done.returncode, 0, done.stderr)
        if lacking:
            print(f"not on this machine, checked by mypy alone: {', '.join(lacking)}", file=sys.stderr)
        self.assertLess(len(lacking), len(stated()), "none of the stated Pythons is on PATH")


if __name__ == "__main__":
    unittest.main()
