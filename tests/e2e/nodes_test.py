"""Across nodes on CPU: tensor groups stay inside a node, stages lie across, and the answer is one."""
import unittest

from nodes import MAX_TOKENS, Nodes


class CpuNodes(Nodes):
    def check(self, nodes, layout, *flags):
        answer, said = self.generate(nodes, *flags)
        self.assertTrue(said.startswith(layout), said)
        sure = next((i for i, m in enumerate(self.prompt["margins"]) if m < 1e-3), MAX_TOKENS)
        self.assertGreater(sure, 8)
        self.assertEqual(answer["token_ids"][:sure], self.prompt["greedy"][:sure])
        return said

    def test_one_node_is_one_tensor_group(self):
        said = self.check(["", ""], "tensor=2 x pipeline=1 (layers 4) (chosen)")
        self.assertIn("1 node of 2 ranks", said)

    def test_two_nodes_are_two_stages(self):
        said = self.check(["a", "b"], "tensor=1 x pipeline=2 (layers 2+2) (chosen)")
        self.assertIn("2 nodes of 1+1 ranks", said)

    def test_ranks_dealt_out_in_turns_are_numbered_node_by_node(self):
        said = self.check(["a", "b", "a", "b"], "tensor=2 x pipeline=2 (layers 2+2) (chosen)")
        self.assertIn("2 nodes of 2+2 ranks", said)

    def test_uneven_nodes_are_uneven_stages(self):
        said = self.check(["a", "b", "a", "a"], "tensor=3+1 x pipeline=2 (layers 3+1) (chosen)")
        self.assertIn("2 nodes of 3+1 ranks", said)

    def test_a_group_across_nodes_can_be_asked_for(self):
        self.check(["a", "b"], "tensor=2 x pipeline=1 (layers 4)", "--layout", "tensor=2")


if __name__ == "__main__":
    del Nodes
    unittest.main()
