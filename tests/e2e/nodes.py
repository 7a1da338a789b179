"""Several nodes emulated on one host: ranks are told which node they are of (TRIREME_NODE)."""
import json
import os
import re
import subprocess
import tempfile
import unittest

from program import MODELS, ROOT, TRIREME, expected, index, token_file

NAME = "llama-plain"  # 4 layers, 3 KV heads
MAX_TOKENS = 24


class Nodes(unittest.TestCase):
    """Subclasses say how ranks of a node are started, and what the program is told besides."""

    flags = ["--device", "cpu"]

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = MODELS / index()[NAME]["path"]
        cls.prompt = expected(index()[NAME])["prompts"][3]
        cls.tokens = token_file(cls.folder.name, cls.prompt["ids"])

    def environment(self, node):
        return {"TRIREME_NODE": node} if node else {}

    def generate(self, nodes, *flags):
        """One rank for each name of a node, in this order; ("", …): all of one node. Gives the
        answer and what the log says of the layout; self.log is all that it says."""
        line = [str(ROOT / "launch/mpirun")]
        for number, node in enumerate(nodes):
            settings = [f"{key}={value}" for key, value in self.environment(node).items()]
            line += [":"] if number else []
            line += ["-n", "1", "env", *settings, TRIREME, "--log-level", "info",
                     "generate", "--model", self.model, "--tokens", self.tokens, "--ignore-eos",
                     "--max-tokens", MAX_TOKENS, "--json", *self.flags, *flags]
        done = subprocess.run([str(word) for word in line], capture_output=True, timeout=100,
                              stdin=subprocess.DEVNULL, env=os.environ)
        said = done.stderr.decode(errors="replace")
        self.assertEqual(done.returncode, 0, said)
        self.log = said
        layout = re.search(r"info \[.*\] layout (.*)", said)
        self.assertIsNotNone(layout, said)
        return json.loads(done.stdout), layout.group(1)
