"""trace and bench overlap: the picture is whole, and the figures add up."""
import collections
import json
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path

from program import MODELS, call, call_json, index

STEPS, SKIP = 25, 5


class Trace(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.model = MODELS / index()["llama-plain"]["path"]

    def trace(self, ranks, layout):
        out = Path(self.folder.name) / "trace.json"
        said = call_json("trace", "--model", self.model, "--device", "cpu", "--layout", layout,
                         "--steps", STEPS, "--skip", SKIP, "--sequences", 4, "--prompt-tokens",
                         "8-40", "--tokens", "40-60", "--token-budget", 32, "--out", out,
                         ranks=ranks)
        self.assertEqual((said["steps"], said["dropped"]), (STEPS, 0))
        self.assertLess(said["clock_error_ns"], 1e9)
        return json.loads(out.read_text())

    def check(self, ranks, layout):
        picture = self.trace(ranks, layout)
        processes, rows, spans = {}, {}, collections.defaultdict(list)
        for event in picture["traceEvents"]:
            row = (event["pid"], event["tid"])
            if event["name"] == "process_name":
                processes[event["pid"]] = event["args"]["name"]
            elif event["name"] == "thread_name":
                rows[row] = event["args"]["name"]
            elif event["ph"] == "X":
                spans[row].append(event)
        world = max(ranks, 1)
        self.assertEqual(len(processes), world + 1)
        self.assertEqual(processes[world], "requests")
        self.assertEqual(set(rows), set(spans))
        for events in spans.values():
            for before, after in zip(events, events[1:]):
                self.assertLessEqual(before["ts"] + before["dur"], after["ts"] + 2e-3)
        for rank in range(world):
            names = {name: spans[row] for row, name in rows.items() if row[0] == rank}
            self.assertEqual([event["name"] for event in names["steps"]],
                             [f"step {SKIP + 1 + i}" for i in range(STEPS)])
            for lane in ("compute", "communication", "idle") if world > 1 else ("compute",):
                self.assertIn(lane, names)
            computed = {event["args"]["step"] for event in names["compute"]
                        if event["name"] == "layers"}
            self.assertEqual(computed, set(range(SKIP + 1, SKIP + 1 + STEPS)))
        requests = {name: spans[row] for row, name in rows.items() if row[0] == world}
        self.assertIn(len(requests), range(1, 5))  # one may be sent only after these steps
        for events in requests.values():
            kinds = [event["name"].split()[0] for event in events]
            self.assertIn("decode", kinds)
            self.assertLessEqual(kinds, sorted(kinds, key=["queued", "prefill", "decode"].index))

    def test_alone(self):
        self.check(0, "tensor=1")

    def test_a_pipeline(self):
        self.check(3, "pipeline=3")

    def test_tensor_and_pipeline(self):
        self.check(4, "tensor=2,pipeline=2")

    def test_a_file_that_cannot_be_written_is_refused_before_loading(self):
        done = call("trace", "--model", self.model, "--steps", 3, "--out", "/no/such/folder/t.json",
                    ranks=2)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--out: /no/such/folder/t.json cannot be written", done.stderr.decode())

    def test_lengths_are_checked(self):
        done = call("trace", "--model", self.model, "--prompt-tokens", "9-3", ranks=2)
        self.assertEqual(done.returncode, 2)
        own = [line for line in done.stderr.decode().splitlines() if line.startswith("trireme: ")]
        self.assertEqual(len(own), 1, done.stderr)
        self.assertIn("--prompt-tokens", own[0])


class Overlap(unittest.TestCase):
    def check(self, ranks, layout, stages):
        with tempfile.TemporaryDirectory() as folder:
            plot = Path(folder) / "plot.svg"
            found = call_json("bench", "overlap", "--model", MODELS / index()["llama-plain"]["path"],
                              "--device", "cpu", "--layout", layout, "--sequences", 6, "--tokens",
                              40, "--prompt-tokens", 16, "--stage-steps", 10, "--plot", plot,
                              ranks=ranks)
            root = xml.etree.ElementTree.parse(plot).getroot()
        self.assertTrue(root.tag.endswith("svg"))
        self.assertEqual(len(found["stages"]), stages)
        self.assertAlmostEqual(found["ratio"], found["value"] / found["bound"])
        self.assertAlmostEqual(found["rows_per_step"], 6 / stages)
        for stage in found["stages"]:
            parts = stage["compute_ms"] + stage["communication_exposed_ms"] + stage["idle_ms"]
            self.assertAlmostEqual(parts, stage["step_ms"], places=4)
            self.assertLessEqual(stage["communication_exposed_ms"], stage["communication_done_ms"])
            self.assertAlmostEqual(stage["bubble"], stage["idle_ms"] / stage["step_ms"])
            self.assertGreater(stage["alone_ms"], 0)
            self.assertEqual("reductions_done_ms" in stage, stage["tensor"] > 1)
        slowest = max(stage["alone_ms"] for stage in found["stages"])
        self.assertAlmostEqual(found["bound"], 1e3 * found["rows_per_step"] / slowest, places=3)

    def test_alone(self):
        self.check(0, "tensor=1", 1)

    def test_a_pipeline(self):
        self.check(3, "pipeline=3", 3)

    def test_tensor_and_pipeline(self):
        self.check(4, "tensor=2,pipeline=2", 2)

    def test_too_few_tokens_are_refused(self):
        done = call("bench", "overlap", "--model", MODELS / index()["llama-plain"]["path"],
                    "--tokens", 4, "--layout", "pipeline=2", ranks=2)
        self.assertEqual(done.returncode, 2, done.stderr)
        own = [line for line in done.stderr.decode().splitlines() if line.startswith("trireme: ")]
        self.assertEqual(len(own), 1, done.stderr)
        self.assertIn("ask for more tokens", own[0])


if __name__ == "__main__":
    unittest.main()
