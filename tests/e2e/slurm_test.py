"""srun and sbatch of the built program on a Slurm cluster of three nodes (slurm_cluster.py)."""
import json
import os
import subprocess
import sys
import time
import unittest

import slurm_cluster
from program import MODELS, ROOT, TRIREME, call_json, expected, index, token_file

NAME = "llama-plain"  # 4 layers, 3 KV heads: tensor=3 and tensor=2,pipeline=2 both fit
MAX_TOKENS = 24


class Slurm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = slurm_cluster.Cluster()
        cls.addClassCleanup(cls.cluster.stop)
        cls.cluster.start()
        cls.model = MODELS / index()[NAME]["path"]
        cls.prompt = expected(index()[NAME])["prompts"][3]
        cls.tokens = token_file(slurm_cluster.STATE, cls.prompt["ids"])
        cls.generate = ["generate", "--model", cls.model, "--tokens", cls.tokens, "--ignore-eos",
                        "--max-tokens", MAX_TOKENS]
        cls.alone = call_json(*cls.generate)["token_ids"]

    def srun(self, nodes, tasks, *arguments, attempts=3):
        """Open MPI 4.1 sometimes dies in MPI_Init, before anything of ours has run: a peer that is
        through it sends, and the receiver calls address 0. Only that is tried again."""
        line = ["srun", "--mpi=pmix", "-N", nodes, "-n", tasks, TRIREME, *arguments]
        try:
            done = slurm_cluster.run(*line, check=False, timeout=20)
            said = done.stderr
        except subprocess.TimeoutExpired as error:  # the others wait for the dead one
            done, said = None, error.stderr or b""
        if b"Failing at address: (nil)" in said and attempts > 1:
            print("Open MPI died in MPI_Init; srun again", file=sys.stderr)
            slurm_cluster.run("scancel", "--user=root")
            return self.srun(nodes, tasks, *arguments, attempts=attempts - 1)
        if not done:
            self.fail("srun does not end: " + said.decode(errors="replace") + self.cluster.logs())
        return done

    def check_same_tokens(self, nodes, tasks, layout):
        done = self.srun(nodes, tasks, *self.generate, "--layout", layout, "--json")
        self.assertEqual(done.returncode, 0, done.stderr.decode() + self.cluster.logs())
        answer = json.loads(done.stdout)  # one object, though there are several ranks
        sure = next((i for i, m in enumerate(self.prompt["margins"]) if m < 1e-3), MAX_TOKENS)
        self.assertGreater(sure, 8)
        self.assertEqual(len(answer["token_ids"]), MAX_TOKENS)
        self.assertEqual(answer["token_ids"][:sure], self.alone[:sure])

    def test_the_nodes_are_three_hosts(self):
        said = slurm_cluster.run("srun", "-N", 3, "-n", 3, "sh", "-c",
                                 "echo $(hostname) $(readlink /proc/self/ns/net)").stdout.decode()
        hosts, networks = zip(*(line.split() for line in said.splitlines()))
        self.assertEqual(sorted(hosts), slurm_cluster.NODES)
        self.assertEqual(len(set(networks)), 3)

    def test_one_rank_a_node_tensor_3(self):
        self.check_same_tokens(3, 3, "tensor=3")

    def test_two_ranks_a_node_tensor_2_pipeline_2(self):
        self.check_same_tokens(2, 4, "tensor=2,pipeline=2")

    def test_without_a_layout_stages_lie_across_the_nodes(self):
        done = self.srun(2, 4, "--log-level", "info", *self.generate, "--json")
        said = done.stderr.decode()
        self.assertEqual(done.returncode, 0, said)
        self.assertIn("layout tensor=2 x pipeline=2", said)
        self.assertIn("(chosen); 2 nodes of 2+2 ranks", said)
        self.assertEqual(len(json.loads(done.stdout)["token_ids"]), MAX_TOKENS)

    def test_a_layout_of_another_size_is_refused(self):
        done = self.srun(3, 3, *self.generate, "--layout", "tensor=2,pipeline=2", "--json")
        said = done.stderr.decode()
        self.assertEqual(done.returncode, 2, said)
        self.assertEqual(said.count("it takes 4 ranks, but 3 were started"), 1, said)
        self.assertEqual(done.stdout, b"")

    def test_serve_sbatch_serves_and_ends_in_good_order(self):
        log = slurm_cluster.STATE / "serve.log"
        job = slurm_cluster.run(
            "sbatch", "--parsable", "-N", 2, "--output", log, ROOT / "launch/serve.sbatch",
            "--model", self.model, "--layout", "tensor=2,pipeline=2",
            env={**os.environ, "TRIREME": TRIREME, "TRIREME_PORT": "50051"}).stdout.decode().strip()
        self.addCleanup(slurm_cluster.run, "scancel", job, check=False)

        def wait_for(text, seconds=30):
            until = time.monotonic() + seconds
            while not log.exists() or text not in log.read_text(errors="replace"):
                said = log.read_text(errors="replace") if log.exists() else "no log"
                self.assertLess(time.monotonic(), until, f"no '{text}': {said}")
                time.sleep(0.05)

        wait_for("serving on 0.0.0.0:50051")
        host = slurm_cluster.run("squeue", "-h", "-j", job, "-o", "%B").stdout.decode().strip()
        # The client waits until the server is healthy; random token ids, for the model has no text.
        report = slurm_cluster.run(TRIREME, "bench", "serve", "--server", f"{host}:50051",
                                   "--requests", 2, "--warmup", 0, "--prompt-tokens", 8,
                                   "--output-tokens", 8, "--json")
        self.assertEqual(json.loads(report.stdout)["ok"], 2)
        slurm_cluster.run("scancel", job)
        wait_for("ended")
        until = time.monotonic() + 15
        while slurm_cluster.run("squeue", "-h", "-j", job, "-o", "%T", check=False).stdout.strip():
            self.assertLess(time.monotonic(), until, "the job does not end")
            time.sleep(0.1)
        said = log.read_text()
        self.assertIn("ending: live requests have", said)
        for word in ("Killed", " error [rank", "terminate called"):
            self.assertNotIn(word, said)


if __name__ == "__main__":
    slurm_cluster.enter()
    unittest.main()
