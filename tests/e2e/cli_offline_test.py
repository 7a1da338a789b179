"""generate, score, tokenize, detokenize and bench: the contract that scripts rely on."""
import json
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest

from program import MODELS, SMOLLM2, call, call_json, command, expected, index, token_file


class Inspect(unittest.TestCase):
    def test_json_holds_the_contract(self):
        answer = call_json("inspect", MODELS / "gguf/llama-wide-q4_k.gguf", ranks=2)
        self.assertEqual(answer["format"], "GGUF v3")
        self.assertEqual(answer["config"]["llama.embedding_length"], 256)
        self.assertEqual(answer["bytes"], sum(t["bytes"] for t in answer["tensors"]))
        self.assertEqual({t["type"] for t in answer["totals"]}, {"F32", "Q4_K"})
        self.assertEqual(sum(t["tensors"] for t in answer["totals"]), len(answer["tensors"]))
        for key in ("tokenizer", "chat_template", "refusal"):
            self.assertIsNone(answer[key])

    def test_text_names_every_tensor(self):
        done = call("inspect", MODELS / "llama3")
        self.assertEqual(done.returncode, 0)
        text = done.stdout.decode()
        for part in ("num_hidden_layers = 4", "model.layers.3.mlp.up_proj.weight", "[112, 48]",
                     "tokenizer: none", "chat template: none", "runs here"):
            self.assertIn(part, text)

    def test_bad_files_have_one_message(self):
        for path in ("/nonexistent", MODELS / "index.json", MODELS):
            done = call("inspect", path)
            self.assertEqual(done.returncode, 2)
            self.assertEqual(done.stdout, b"")
            self.assertEqual(done.stderr.count(b"\n"), 1, done.stderr)


class Generate(unittest.TestCase):
    def test_ranks_with_other_instruction_sets_are_told_of(self):
        with tempfile.TemporaryDirectory() as folder:
            words = ["generate", "--model", MODELS / index()["llama3"]["path"], "--layout",
                     "tensor=2", "--tokens", token_file(folder, [1, 2, 3]), "--max-tokens", "2"]
            for other in ("reference", "avx2"):
                line = command(words, ranks=1)
                done = subprocess.run([*line, ":", "-n", "1", "env", f"TRIREME_CPU_ISA={other}",
                                       *command(words)], capture_output=True, timeout=120,
                                      env={**os.environ, "TRIREME_CPU_ISA": "reference",
                                           "TRIREME_DEVICE": "cpu"})
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(b"different instruction sets (reference, rank 1 avx2)" in done.stderr,
                                 other == "avx2", done.stderr)

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.entry = index()["llama3"]
        cls.model = MODELS / cls.entry["path"]
        cls.expected = expected(cls.entry)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def generate(self, prompt, *arguments, **options):
        tokens = token_file(self.folder.name, prompt["ids"])
        return call_json("generate", "--model", self.model, "--tokens", tokens, "--ignore-eos",
                         *arguments, **options)

    def test_json_holds_the_contract(self):
        prompt = self.expected["prompts"][3]
        answer = self.generate(prompt, "--max-tokens", 16)
        self.assertEqual(answer["token_ids"], prompt["greedy"][:16])
        self.assertEqual(answer["finish_reason"], "length")
        self.assertEqual(answer["prompt_tokens"], len(prompt["ids"]))
        self.assertEqual(answer["cached_tokens"], 0)
        self.assertEqual(answer["text"], "")  # no tokenizer
        self.assertGreater(answer["ttft_ms"], 0)
        self.assertGreater(answer["decode_tokens_per_s"], 0)

    def test_stdin_is_read_by_rank_0_alone(self):
        prompt = self.expected["prompts"][1]
        text = json.dumps(prompt["ids"]).encode()
        answer = call_json("generate", "--model", self.model, "--tokens", "-", "--ignore-eos",
                           "--max-tokens", 4, stdin=text, ranks=2)
        self.assertEqual(answer["token_ids"], prompt["greedy"][:4])
        self.assertEqual(call("generate", "--model", self.model, "--tokens", "-", stdin=b"[1,",
                              ranks=2).returncode, 2)

    def test_every_layout_gives_the_same_tokens(self):
        prompt = self.expected["prompts"][4]
        for ranks, layout in [(0, "tensor=1"), (2, "tensor=2"), (2, "pipeline=2"),
                              (3, "tensor=3"), (4, "tensor=2,pipeline=2"), (4, "")]:
            with self.subTest(ranks=ranks, layout=layout):
                arguments = ["--layout", layout] if layout else []
                answer = self.generate(prompt, "--max-tokens", 40, *arguments, ranks=ranks)
                # Compared up to the first step that rounding may decide.
                sure = next((i for i, m in enumerate(prompt["margins"]) if m < 1e-3), 40)
                self.assertGreater(sure, 8)
                self.assertEqual(answer["token_ids"][:sure], prompt["greedy"][:sure])

    def test_resumes_from_any_position(self):
        prompt = self.expected["prompts"][2]
        for done in (1, 7, 30):
            prior = token_file(self.folder.name, prompt["greedy"][:done], "prior.json")
            answer = self.generate(prompt, "--max-tokens", 40, "--prior-tokens", prior, "--seed", 1)
            self.assertEqual(answer["token_ids"], prompt["greedy"][done:40])

    def test_a_gguf_file_without_tokenizer_takes_token_ids(self):
        entry = index()["gguf-qwen3-f32"]
        prompt = expected(entry)["prompts"][3]
        tokens = token_file(self.folder.name, prompt["ids"])
        answer = call_json("generate", "--model", MODELS / entry["path"], "--tokens", tokens,
                           "--ignore-eos", "--max-tokens", 12)
        self.assertEqual(answer["token_ids"], prompt["greedy"][:12])

    def test_a_seed_repeats_and_another_differs(self):
        prompt = self.expected["prompts"][3]
        one, again, other = (
            self.generate(prompt, "--temperature", 1.0, "--max-tokens", 30, "--seed", seed)
            for seed in (5, 5, 6))
        self.assertEqual(one["token_ids"], again["token_ids"])
        self.assertNotEqual(one["token_ids"], other["token_ids"])

    def test_n_outputs_are_draws_of_one_request(self):
        prompt = self.expected["prompts"][3]
        arguments = ["--temperature", 1.0, "--seed", 5, "--max-tokens", 20]
        one = self.generate(prompt, *arguments)
        three = self.generate(prompt, *arguments, "--n", 3, ranks=2)
        self.assertNotIn("outputs", one)
        self.assertEqual(len(three["outputs"]), 3)
        self.assertEqual(three["token_ids"], one["token_ids"])
        self.assertEqual(three["outputs"][0]["token_ids"], one["token_ids"])
        self.assertEqual(len({str(output["token_ids"]) for output in three["outputs"]}), 3)
        for output in three["outputs"]:
            self.assertEqual(len(output["token_ids"]), 20)
            self.assertEqual(output["finish_reason"], "length")

    def test_lists_of_tokens(self):
        prompt = self.expected["prompts"][3]
        greedy = prompt["greedy"]
        banned = self.generate(prompt, "--max-tokens", 10, "--banned-tokens", greedy[0])
        self.assertNotIn(greedy[0], banned["token_ids"])
        allowed = [greedy[0] ^ 1, 3, 400]
        for given in (",".join(map(str, allowed)),
                      f"@{token_file(self.folder.name, allowed, 'list.json')}"):
            answer = self.generate(prompt, "--max-tokens", 10, "--allowed-tokens", given)
            self.assertLessEqual(set(answer["token_ids"]), set(allowed))
        biased = self.generate(prompt, "--max-tokens", 10, "--logit-bias", "9:1000",
                               "--logit-bias", f"{greedy[0]}:-1.5", ranks=2)
        self.assertEqual(biased["token_ids"], [9] * 10)

    def test_prompt_logprobs_are_those_of_score(self):
        prompt = self.expected["prompts"][3]
        answer = self.generate(prompt, "--max-tokens", 3, "--logprobs", 2, "--prompt-logprobs", 1)
        tokens = token_file(self.folder.name, prompt["ids"] + answer["token_ids"])
        score = call_json("score", "--model", self.model, "--tokens", tokens, "--top-k", 2)
        told = answer["prompt_logprobs"] + answer["logprobs"]
        self.assertEqual([one["token"] for one in told],
                         prompt["ids"][1:] + answer["token_ids"])
        for one, logprob, top in zip(told, score["logprobs"], score["top"]):
            self.assertAlmostEqual(one["logprob"], logprob, delta=1e-4)
            self.assertEqual(one["top"][0][0], top[0][0])
        self.assertEqual([len(one["top"]) for one in answer["logprobs"]], [2, 2, 2])

    def test_score_matches_the_reference(self):
        reference = self.expected["logprobs"]
        ids = self.expected["prompts"][reference["prompt"]]["ids"]
        tokens = token_file(self.folder.name, ids)
        for ranks in (0, 3):
            answer = call_json("score", "--model", self.model, "--tokens", tokens, "--top-k", 3,
                               ranks=ranks)
            self.assertEqual(len(answer["logprobs"]), len(ids) - 1)
            for value, wanted in zip(answer["logprobs"], reference["values"]):
                self.assertAlmostEqual(value, wanted, delta=1e-3)
            for best in answer["top"]:
                self.assertEqual(len(best), 3)
                self.assertGreaterEqual(best[0][1], best[1][1])
                self.assertLess(sum(math.exp(p) for _, p in best), 1.0 + 1e-5)

    def test_top_k_over_the_whole_vocabulary_sums_to_one(self):
        ids = self.expected["prompts"][1]["ids"]
        tokens = token_file(self.folder.name, ids)
        answer = call_json("score", "--model", self.model, "--tokens", tokens, "--top-k",
                           self.entry["vocab"], ranks=2)
        for best in answer["top"]:
            self.assertEqual(len({token for token, _ in best}), self.entry["vocab"])
            self.assertAlmostEqual(sum(math.exp(p) for _, p in best), 1.0, delta=1e-4)

    def test_bench_prints_ratios_to_measured_limits(self):
        decode = call_json("bench", "decode", "--model", self.model, "--tokens", 100, "--repeats", 1)
        self.assertAlmostEqual(decode["ratio"], decode["bytes_per_s"] / decode["read_bandwidth"],
                               delta=1e-6)
        self.assertTrue(1e8 < decode["read_bandwidth"] < 1e13, decode)
        prefill = call_json("bench", "prefill", "--model", self.model, "--prompt-tokens", 64,
                            "--repeats", 1, ranks=2)
        self.assertAlmostEqual(prefill["ratio"], prefill["flops_per_s"] / prefill["flops_limit"],
                               delta=1e-6)
        # More than 2 operations for each of the model's weights (all but norms) and token.
        self.assertGreater(prefill["flops_per_s"] / prefill["value"], 2 * 4 * 48 * 112)

    def test_bench_counts_each_run_against_the_bandwidth_beside_it(self):
        decode = call_json("bench", "decode", "--model", self.model, "--tokens", 100, "--repeats", 3)
        self.assertEqual(len(decode["ratios"]), 3)
        self.assertIn(decode["ratio"], decode["ratios"])
        together = call_json("bench", "decode", "--model", self.model, "--tokens", 100,
                             "--repeats", 1, "--layout", "tensor=2", ranks=2)
        self.assertNotIn("ratios", together)

    def test_random_weights_of_a_shape_need_no_weights(self):
        shape = os.path.join(self.folder.name, "shape")
        os.mkdir(shape)
        shutil.copy(MODELS / "llama3/config.json", shape)
        self.assertEqual(call("score", "--model", shape, "--tokens",
                              token_file(self.folder.name, [1, 2, 3])).returncode, 2)
        tokens = token_file(self.folder.name, [5, 6, 7])
        flags = ["--model", shape, "--load-format", "dummy", "--tokens", tokens, "--ignore-eos",
                 "--max-tokens", 8]
        alone = call_json("generate", *flags)["token_ids"]
        self.assertEqual(len(alone), 8)
        # Each rank makes the same matrices, and keeps its part.
        for layout in ("tensor=2", "pipeline=2"):
            again = call_json("generate", *flags, "--layout", layout, ranks=2)
            self.assertEqual(again["token_ids"], alone)

    def test_echo_is_text_and_no_output(self):
        prompt = self.expected["prompts"][2]
        answer = self.generate(prompt, "--max-tokens", 6, "--echo")
        self.assertEqual(answer["token_ids"], prompt["greedy"][:6])

    def test_a_result_that_cannot_be_written_is_an_error(self):
        tokens = token_file(self.folder.name, [1, 2, 3])
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command(["generate", "--model", self.model, "--tokens", tokens,
                                           "--max-tokens", 2, "--json"]), stdout=full,
                                  stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 1, done.stderr)


@unittest.skipUnless(SMOLLM2, "TRIREME_SMOLLM2 does not name the model")
class RealModel(unittest.TestCase):
    def test_text_goes_in_and_comes_out(self):
        answer = call_json("generate", "--model", SMOLLM2, "--prompt", "The capital of France is",
                           "--max-tokens", 24)
        self.assertIn("Paris", answer["text"])
        ids = answer["token_ids"]
        text = call_json("detokenize", "--model", SMOLLM2, stdin=json.dumps(ids).encode())["text"]
        self.assertTrue(text.startswith(answer["text"]))

    def test_stop_string_ends_the_text_before_it(self):
        answer = call_json("generate", "--model", SMOLLM2, "--prompt", "The capital of France is",
                           "--max-tokens", 24, "--stop", "Par", "--stop", "xyzzy")
        self.assertEqual(answer["finish_reason"], "stop")
        self.assertNotIn("Par", answer["text"])

    def test_tokenize_and_detokenize_are_inverse(self):
        text = "Trirèmes: 170 rowers, 3 banks — 三段櫂船 🚣‍♂️\n\tif (x < 10) { return \"ναῦς\"; }"
        ids = call_json("tokenize", "--model", SMOLLM2, stdin=text.encode())["token_ids"]
        back = call_json("detokenize", "--model", SMOLLM2, stdin=json.dumps(ids).encode())["text"]
        self.assertEqual(back, text)
        self.assertEqual(call_json("tokenize", "--model", SMOLLM2, stdin=text.encode(),
                                   ranks=2)["token_ids"], ids)  # one object, not one a rank
        plain = call("tokenize", "--model", SMOLLM2, stdin=text.encode())
        self.assertEqual([int(line) for line in plain.stdout.split()], ids)

    def test_a_closed_pipe_ends_the_work(self):
        line = command(["generate", "--model", SMOLLM2, "--prompt", "Once upon a time",
                        "--ignore-eos", "--max-tokens", 4000])
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.read(10)
            process.stdout.close()
            said = process.stderr.read().decode()
            self.assertEqual(process.wait(60), 1)
        self.assertLess(int(re.search(r"prompt \+ (\d+) tokens", said)[1]), 2000, said)

    def test_a_signal_is_an_exit_code(self):
        line = command(["generate", "--model", SMOLLM2, "--prompt", "Once upon a time",
                        "--ignore-eos", "--max-tokens", 4000])
        for number in (signal.SIGINT, signal.SIGTERM):
            with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                process.stdout.read(10)
                process.send_signal(number)
                self.assertEqual(process.communicate(timeout=60)[1], b"trireme: interrupted\n")
                self.assertEqual(process.returncode, 1)

    def test_special_tokens_and_stop_strings_stay_where_asked(self):
        arguments = ["generate", "--model", SMOLLM2, "--prompt",
                     "<|im_start|>user\nWhat is 2+2? Answer with one number.<|im_end|>\n"
                     "<|im_start|>assistant\n"]
        plain = call_json(*arguments)
        self.assertEqual(plain["finish_reason"], "stop")
        on = [*arguments, "--ignore-eos", "--max-tokens", len(plain["token_ids"])]
        self.assertEqual(call_json(*on)["text"], plain["text"])
        self.assertEqual(call_json(*on, "--keep-special")["text"], plain["text"] + "<|im_end|>")
        word = plain["text"].split()[0]
        self.assertEqual(call_json(*arguments, "--stop", word, "--include-stop")["text"],
                         plain["text"][:plain["text"].index(word) + len(word)])

    def test_logs_stay_off_stdout(self):
        done = call("--log-level", "debug", "generate", "--model", SMOLLM2, "--prompt", "Hello",
                    "--max-tokens", 2, "--json", ranks=2)
        json.loads(done.stdout)
        self.assertGreater(len(done.stderr), 0)


if __name__ == "__main__":
    unittest.main()
