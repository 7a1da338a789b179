"""launch/bundle: the tarball, unpacked elsewhere, runs with its own libraries and nothing else."""
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import unittest
from pathlib import Path

BUILD = Path(os.environ["TRIREME_BUILD"])
ROOT = Path(os.environ["TRIREME_ROOT"])
VERSION = os.environ["TRIREME_VERSION"]
MODEL = ROOT / "tests/fixtures/models/llama3"
LIMIT_MB = 60


def run(*command, **environment):
    """With nothing of this environment but the paths of the system's programs."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180,
                          cwd="/", env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", **environment})
    if done.returncode != 0:
        raise AssertionError(f"{command[0]} ends with {done.returncode}: {done.stderr}")
    return done.stdout


class Bundle(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        folder = Path(cls.folder.name)
        archive = run(ROOT / "launch/bundle", "--build", BUILD, "--output", folder).split()[-1]
        cls.archive = Path(archive)
        with tarfile.open(archive) as tar:
            cls.members = tar.getnames()
            tar.extractall(folder / "first place")
        # Moved after it was unpacked: nothing in it remembers where.
        cls.tree = folder / "second place" / cls.members[0]
        cls.tree.parent.mkdir()
        shutil.move(folder / "first place" / cls.members[0], cls.tree)
        cls.tokens = folder / "ids.json"
        cls.tokens.write_text("[5, 6, 7]")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def generate(self, *launcher):
        answer = run(*launcher, self.tree / "bin/trireme", "generate", "--model", MODEL, "--tokens",
                     self.tokens, "--max-tokens", 4, "--temperature", 0, "--ignore-eos", "--json",
                     TRIREME_DEVICE="cpu")
        return json.loads(answer)["token_ids"]

    def test_one_folder_of_the_promised_name_and_size(self):
        name = f"trireme-{VERSION}-linux-{os.uname().machine}"
        self.assertEqual(self.archive.name, name + ".tar.gz")
        self.assertEqual({member.split("/")[0] for member in self.members}, {name})
        self.assertLess(self.archive.stat().st_size, LIMIT_MB * 1e6)

    def test_it_generates_alone_and_under_its_mpirun(self):
        alone = self.generate()
        self.assertEqual(len(alone), 4)
        self.assertEqual(self.generate(self.tree / "launch/mpirun", "-n", 2), alone)

    def test_libraries_come_from_the_bundle(self):
        own = {path.name for path in (self.tree / "lib").iterdir()}
        for name in ("libgrpc++", "libprotobuf", "libfmt", "libspdlog"):
            self.assertTrue(any(library.startswith(name + ".so") for library in own), name)
        for name in ("libc.so", "libstdc++", "libmpi", "libcuda", "libnccl", "libcublas"):
            self.assertFalse(any(library.startswith(name) for library in own), name)
        linked = run("ldd", self.tree / "bin/trireme")
        self.assertNotIn("not found", linked)
        for line in linked.splitlines():
            library, _, path = line.strip().partition(" => ")
            if library in own:
                self.assertTrue(path.startswith(str(self.tree)), line)

    def test_modules_that_were_built_are_in_it(self):
        built = {path.name for path in (BUILD / "lib/trireme").glob("*.so")}
        self.assertEqual({path.name for path in (self.tree / "lib").glob("trireme/*.so")}, built)

    def test_what_comes_with_it_is_there(self):
        for name in ("LICENSE", "README", "launch/serve", "cluster_configs", "proto", "licenses"):
            self.assertTrue((self.tree / name).exists(), name)
        self.assertIn("glibc 2.", (self.tree / "README").read_text())


if __name__ == "__main__":
    unittest.main()
