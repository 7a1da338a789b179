"""Across nodes on two GPUs of one host: NCCL takes the ranks for ranks of two hosts and goes over
sockets. The same layouts are chosen as between hosts, and the tokens are those of one host. Skipped
(exit 77) where there are fewer GPUs."""
import subprocess
import sys
import unittest

from nodes import Nodes


def gpus():
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30, check=False)
    except OSError:
        return 0
    return sum(line.startswith(b"GPU") for line in done.stdout.splitlines())


class GpuNodes(Nodes):
    flags = ["--device", "cuda"]
    # Sums of our own kernels round differently from NCCL's.
    sums = {"TRIREME_ALL_REDUCE": "communicator"}

    def environment(self, node):
        if not node:
            return self.sums
        return {"TRIREME_NODE": node, "NCCL_HOSTID": node, "NCCL_P2P_DISABLE": "1",
                # A node's ranks count its own GPUs.
                "CUDA_VISIBLE_DEVICES": {"a": "0", "b": "1"}.get(node, ""),
                "NCCL_SHM_DISABLE": "1", "NCCL_NET": "Socket", "NCCL_SOCKET_IFNAME": "lo",
                **self.sums}

    def same_tokens(self, layout):
        flags = ["--layout", layout]
        apart, _ = self.generate(["a", "b"], *flags)
        together, _ = self.generate(["", ""], *flags)
        self.assertEqual(apart["token_ids"], together["token_ids"])

    def test_two_nodes_are_two_stages(self):
        answer, said = self.generate(["a", "b"])
        self.assertTrue(said.startswith("tensor=1 x pipeline=2"), said)
        self.assertIn("2 nodes of 1+1 ranks", said)
        self.assertEqual(len(answer["token_ids"]), 24)

    def test_one_node_is_one_tensor_group(self):
        _, said = self.generate(["", ""])
        self.assertTrue(said.startswith("tensor=2 x pipeline=1"), said)
        self.assertIn("1 node of 2 ranks", said)
        print(said)

    def test_stages_over_sockets(self):
        self.same_tokens("pipeline=2")

    def test_a_tensor_group_over_sockets(self):
        self.same_tokens("tensor=2")

    # What is chosen where nobody asks for a way: our own kernels need memory that ranks map from
    # each other, and a host has it.
    def test_the_way_of_sums(self):
        self.sums = {}
        alone = "sums between GPUs go through NCCL alone: rank 1 is on another host"
        self.generate(["a", "b"], "--layout", "tensor=2")
        self.assertIn(alone, self.log)
        self.generate(["", ""], "--layout", "tensor=2")
        self.assertNotIn("through NCCL alone", self.log)


if __name__ == "__main__":
    if gpus() < 2:
        print("skipped: two GPUs are needed")
        sys.exit(77)
    del Nodes
    unittest.main()
