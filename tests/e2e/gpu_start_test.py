"""What the program says when it starts on a GPU, and what it refuses. Skipped (exit 77) without one."""
import json
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from program import MODELS, ROOT, call, expected, index, token_file

NAME = "llama-plain"
UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def gpu_memory():
    """Bytes of the first GPU: in all, and in use."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--id=0", "--query-gpu=memory.total,memory.used", "--format=csv,noheader,nounits"],
            capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(int(part) << 20 for part in done.stdout.split(b","))


def size(text):
    number, unit = text.split()
    return float(number) * UNITS[unit]


class GpuStart(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        prompt = expected(index()[NAME])["prompts"][3]
        self.prompt = ["--tokens", token_file(folder.name, prompt["ids"]), "--ignore-eos", "--max-tokens", 4]

    def generate(self, model, *flags):
        done = call("--log-level", "info", "generate", "--model", model, *self.prompt, *flags)
        return done.returncode, done.stderr.decode(errors="replace")

    def shape(self, **changes):
        """A folder with the config.json of a Llama of 8B parameters, changed."""
        config = json.loads((ROOT / "bench/shapes/llama-3.1-8b/config.json").read_text())
        (self.folder / "config.json").write_text(json.dumps({**config, **changes}))
        return self.folder

    def test_the_account_adds_up(self):
        total, used = gpu_memory()
        code, said = self.generate(self.shape(num_hidden_layers=4), "--load-format", "dummy")
        self.assertEqual(code, 0, said)
        found = re.search(r"backend cuda.*; weights (.*?), workspace (.*?) and KV cache (.*?) \(bf16\) on rank 0", said)
        self.assertIsNotNone(found, said)
        weights, workspace, kv = map(size, found.groups())
        capacity = int(re.search(r"KV capacity (\d+) tokens", said).group(1))
        # Two embedding tables and four layers in bf16, nothing else of weight.
        layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
        self.assertAlmostEqual(weights / (2 * (2 * 128256 * 4096 + 4 * layer)), 1, delta=0.01)
        # K and V of 8 heads of 128 in 4 layers.
        self.assertAlmostEqual(kv / (capacity * 2 * 4 * 8 * 128 * 2), 1, delta=0.01)
        self.assertGreater(workspace, 1 << 20)
        # What was free is used, but for a reserve, and no more.
        self.assertLess(weights + workspace + kv, total - used)
        self.assertGreater(weights + workspace + kv, 0.8 * (total - used))
        self.assertRegex(said, r"weights loaded: .* in .* s, .* GB/s")

    def test_the_gpu_is_the_default(self):
        code, said = self.generate(MODELS / index()[NAME]["path"], "--kv-memory", "64MiB")
        self.assertEqual(code, 0, said)
        self.assertIn("backend cuda", said)

    def test_what_does_not_fit_says_how_much_is_missing_and_what_would(self):
        total, _ = gpu_memory()
        # So many layers that two such GPUs hold them and one does not.
        layer = 2 * (4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336)
        code, said = self.generate(self.shape(num_hidden_layers=int(1.3 * total / layer)), "--load-format", "dummy")
        self.assertNotEqual(code, 0)
        self.assertRegex(said, r"not enough memory on the GPU of rank 0 .*: .* needed \(weights .*, workspace .*, "
                               r"KV cache .*\), .* available, missing .* GiB; .*tensor=2")
        self.assertNotIn("terminate", said)

    def test_a_second_rank_needs_a_gpu_of_its_own(self):
        done = call("generate", "--model", MODELS / index()[NAME]["path"], *self.prompt, "--device", "cuda",
                    ranks=2, env={"CUDA_VISIBLE_DEVICES": "0"})
        self.assertNotEqual(done.returncode, 0)
        self.assertRegex(done.stderr.decode(errors="replace"), r"rank 0 \(.*\) and rank 1 \(.*\) would share one GPU")


if __name__ == "__main__":
    if not gpu_memory():
        print("skipped: a GPU is needed")
        sys.exit(77)
    unittest.main()
