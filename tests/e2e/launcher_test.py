"""What the program makes of a launcher's variables: srun without PMI is refused, not misread."""
import json
import tempfile
import unittest

from program import MODELS, call, index, token_file


class Launcher(unittest.TestCase):
    def generate(self, **env):
        with tempfile.TemporaryDirectory() as folder:
            return call("generate", "--model", MODELS / index()["llama3"]["path"], "--tokens",
                        token_file(folder, [5, 6, 7]), "--max-tokens", 2, "--ignore-eos", "--json",
                        env=env)

    def test_srun_of_several_tasks_without_pmi_is_refused(self):
        done = self.generate(SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("srun started 4 tasks", done.stderr.decode())
        self.assertIn("--mpi=pmix", done.stderr.decode())
        self.assertEqual(done.stdout, b"")

    def test_what_is_one_process_runs(self):
        for env in ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"},
                    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},  # a batch script's own process
                    {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "TRIREME_MPI": "0"},
                    {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "0", "TRIREME_MPI": "0"}):
            with self.subTest(env=env):
                done = self.generate(**env)
                self.assertEqual(done.returncode, 0, done.stderr.decode())
                self.assertEqual(len(json.loads(done.stdout)["token_ids"]), 2)


if __name__ == "__main__":
    unittest.main()
