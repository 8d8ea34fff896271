"""The package's own types, checked strictly for the oldest and the newest Python that it states."""

import importlib.util
import re
import subprocess
import sys
import unittest

import support


def stated():
    """The Pythons that pyproject.toml states, as (3, 10)."""
    text = (support.PACKAGE / "pyproject.toml").read_text()
    versions = sorted((3, int(minor)) for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', text))
    (oldest,) = re.findall(r'requires-python = ">=3\.(\d+)"', text)
    assert versions[0] == (3, int(oldest)), "requires-python and the classifiers say the same"
    return versions


class Types(unittest.TestCase):
    def test_they_are_strict_for_the_oldest_and_the_newest(self):
        if importlib.util.find_spec("mypy") is None:
            self.fail(f"{sys.executable} has no mypy: run with .deps/package/bin/python, which scripts/setup makes")
        for version in (stated()[0], stated()[-1]):
            # It knows which Python the syntax is of, and since when each name of the standard library is there.
            command = [sys.executable, "-m", "mypy", "--python-version", "{}.{}".format(*version), "--cache-dir=/dev/null"]
            checked = subprocess.run(command, cwd=support.PACKAGE, capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, f"{version}: {checked.stdout}{checked.stderr}")
            self.assertIn("no issues found", checked.stdout)


if __name__ == "__main__":
    unittest.main()
