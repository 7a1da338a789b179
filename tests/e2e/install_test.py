"""`cmake --install` into an empty prefix: the installed program runs from there, with its files."""
import json
import os
import subprocess
import tempfile
import unittest
from pathlib import Path

BUILD = os.environ["TRIREME_BUILD"]
CMAKE = os.environ["CMAKE"]
VERSION = os.environ["TRIREME_VERSION"]
MODEL = Path(os.environ["TRIREME_ROOT"]) / "tests/fixtures/models/llama3"


def run(*command):
    return subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, timeout=120,
                          cwd="/", check=True).stdout


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.prefix = Path(cls.folder.name) / "prefix"
        cls.tokens = Path(cls.folder.name) / "ids.json"
        cls.tokens.write_text("[5, 6, 7]")
        run(CMAKE, "--install", BUILD, "--prefix", cls.prefix)
        cls.program = cls.prefix / "bin/trireme"

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def generate(self, *launcher):
        answer = run(*launcher, self.program, "generate", "--model", MODEL, "--tokens", self.tokens,
                     "--max-tokens", 2, "--temperature", 0, "--ignore-eos", "--json")
        return json.loads(answer)["token_ids"]

    def test_the_program_runs(self):
        self.assertEqual(run(self.program, "--version").split()[-1], VERSION)
        self.assertEqual(len(self.generate()), 2)

    def test_it_runs_under_the_installed_mpirun(self):
        mpirun = self.prefix / "share/trireme/launch/mpirun"
        self.assertEqual(self.generate(mpirun, "-n", 2), self.generate())

    def test_the_installed_serve_finds_the_program(self):
        environment = {key: value for key, value in os.environ.items() if key != "TRIREME"}
        done = subprocess.run([self.prefix / "share/trireme/launch/serve", "1", "--model", "/nowhere"],
                              capture_output=True, text=True, timeout=60, env=environment)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(str(self.program), done.stderr)  # the line that it runs
        self.assertIn("/nowhere", done.stderr)

    def test_what_comes_with_it_is_there(self):
        for name in ("proto/trireme/v1/trireme.proto", "cluster_configs", "launch/serve.sbatch",
                     "launch/README.md"):
            self.assertTrue((self.prefix / "share/trireme" / name).exists(), name)
        self.assertTrue((self.prefix / "share/doc/trireme/LICENSE").exists())

    def test_nothing_links_to_the_build(self):
        linked = run("ldd", self.program)
        self.assertNotIn(BUILD, linked)
        self.assertNotIn("not found", linked)


if __name__ == "__main__":
    unittest.main()
