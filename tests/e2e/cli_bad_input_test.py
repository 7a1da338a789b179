"""Bad input: one clear message on stderr, exit code 2 (1 for the machine's limits), never a signal."""
import json
import os
import shutil
import tempfile
import unittest
from pathlib import Path

from program import MODELS, SMOLLM2, call, index, token_file


class BadInput(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.temporary.name)
        cls.model = MODELS / index()["llama3"]["path"]
        cls.gguf = MODELS / index()["gguf-qwen3-f32"]["path"]
        cls.tokens = token_file(cls.folder, [1, 2, 3])

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def refused(self, *arguments, says, code=2, **options):
        done = call(*arguments, **options)
        error = done.stderr.decode(errors="replace")
        self.assertEqual(done.returncode, code, error)
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(part, error)
        own = [line for line in error.splitlines() if line.startswith("trireme: ")]
        self.assertEqual(len(own), 1, error)  # one message, however many ranks

    def generate(self, *arguments, model=None, **options):
        self.refused("generate", "--model", model or self.model, "--tokens", self.tokens, *arguments,
                     **options)

    def copy_of_model(self, name):
        target = self.folder / name
        shutil.copytree(self.model, target)
        return target

    def test_usage(self):
        for arguments in (["nonsense"], ["generate"], [], ["generate", "--model", "x", "--bogus"]):
            done = call(*arguments)
            self.assertEqual(done.returncode, 2)
            self.assertEqual(done.stdout, b"")
        self.assertIn(b"unknown subcommand 'genrate'", call("genrate").stderr)
        self.assertEqual(call("--help").returncode, 0)
        self.assertEqual(call("--version").returncode, 0)

    def test_help_lists_every_flag_of_the_contract(self):
        instance = ["model", "layout", "device", "threads", "profile", "kv-memory", "max-context",
                    "deterministic"]
        sampling = ["temperature", "top-k", "top-p", "min-p", "repetition-penalty", "presence-penalty",
                    "frequency-penalty", "logit-bias", "allowed-tokens", "banned-tokens", "seed",
                    "max-tokens", "min-tokens", "stop", "stop-id", "include-stop", "ignore-eos"]
        contract = {
            "generate": [*instance, *sampling, "prompt", "prompt-file", "tokens", "n", "json",
                         "prior-tokens", "logprobs", "prompt-logprobs", "echo"],
            "score": [*instance, "text", "text-file", "tokens", "top-k", "json"],
            "serve": [*instance, "listen", "port-file", "grace", "keep"],
            "chat": [*sampling, "server", "prompt", "system", "raw", "wait", "json"],
            "tokenize": ["model", "json"],
            "detokenize": ["model", "json"],
            "bench decode": [*instance, "batch", "repeats", "json"],
            "bench prefill": [*instance, "prompt-tokens", "repeats", "json"],
            "bench serve": ["server", "requests", "concurrency", "rate", "output", "plot", "json"],
            "trace": [*instance, "steps", "skip", "out", "json"],
        }
        for command, flags in contract.items():
            done = call(*command.split(), "--help")
            self.assertEqual(done.returncode, 0)
            listed = {word.rstrip(",") for word in done.stdout.decode().split()}
            self.assertEqual([flag for flag in flags if f"--{flag}" not in listed], [], command)

    def test_numbers_that_are_none(self):
        for seed in ("-1", "18446744073709551616", "1.5", "x"):
            self.generate("--seed", seed, says=["--seed", seed])
        self.refused("trace", "--model", self.model, "--skip", "-1", says=["--skip", "-1"])
        for grace in ("nan", "inf", "-1", "1e9"):
            self.refused("serve", "--model", self.model, "--grace", grace, says=["--grace", grace])
        self.generate("--kv-memory", "1", says=["kv_memory", "needed"])
        self.refused("bench", "serve", "--rate", "-1", says=["--rate", "at least 0"])
        self.refused("bench", "serve", "--timeout", "0", says=["--timeout", "above 0"])
        # Found by rank 0 alone; the others measure and end.
        self.refused("bench", "decode", "--model", self.model, "--temperature", "-1", "--tokens", "4",
                     "--prompt-tokens", "4", ranks=2, says="temperature is -1")

    def test_clients(self):
        for server in ("", "localhost", "127.0.0.1:99999", "127.0.0.1:0", "a:b"):
            self.refused("chat", "--server", server, "--prompt", "x", "--wait", "0",
                         says=f"'{server}' is not HOST:PORT")
            self.refused("bench", "serve", "--server", server, says=f"'{server}' is not HOST:PORT")
        self.refused("chat", "--prompt", "", says="--prompt")
        self.refused("bench", "serve", "--plot", "p.png", says=["--plot", ".svg"])

    def test_no_such_model(self):
        self.generate(model=self.folder / "nowhere", says="nowhere")
        self.generate(model=self.folder / "nowhere.gguf", says="nowhere.gguf", ranks=2)

    def test_wrong_layout(self):
        self.generate("--layout", "tensor=3,pipeline=2", ranks=4, says=["6", "4"])
        self.generate("--layout", "tensor=banana", says="tensor")
        self.generate("--layout", "tensor=0", says="tensor")
        self.generate("--layout", "tensr=2", says="tensr")
        self.generate("--layout", self.folder / "none.toml", says="none.toml")
        self.generate("--layout", "pipeline=50", says="50", ranks=2)

    def test_token_files(self):
        for text in ("", "{", '{"a": 1}', "[1, -2]", "[1, 2.5]", '["a"]', "[99999999999]"):
            path = self.folder / "bad.json"
            path.write_text(text)
            self.refused("generate", "--model", self.model, "--tokens", path, says="bad.json")
        self.refused("generate", "--model", self.model, "--tokens", token_file(self.folder, []),
                     says="prompt")
        over = token_file(self.folder, [1, 515], "over.json")
        self.refused("generate", "--model", self.model, "--tokens", over, says="515")
        self.refused("score", "--model", self.model, "--tokens", over, says="515", ranks=2)

    def test_prompt_over_the_context(self):
        long = token_file(self.folder, [1] * 40, "long.json")
        self.refused("generate", "--model", self.model, "--tokens", long, "--max-context", 32,
                     says=["40", "32"])

    def test_sampling_parameters(self):
        for flag, value, field in [("--temperature", "nan", "temperature"),
                                   ("--temperature", "-1", "temperature"),
                                   ("--top-p", "nan", "top_p"), ("--top-p", "1.5", "top_p"),
                                   ("--top-p", "0", "top_p"), ("--min-p", "2", "min_p"),
                                   ("--repetition-penalty", "0", "repetition_penalty"),
                                   ("--repetition-penalty", "inf", "repetition_penalty"),
                                   ("--presence-penalty", "nan", "presence_penalty"),
                                   ("--frequency-penalty", "9", "frequency_penalty"),
                                   ("--max-tokens", "-1", "max_tokens"),
                                   ("--stop-id", "100000", "stop_ids"), ("--n", "0", "n is 0"),
                                   ("--n", "1000000", "n is 1000000"), ("--n", "-1", "n is -1"),
                                   ("--logit-bias", "7:nan", "logit_bias"),
                                   ("--logit-bias", "7", "--logit-bias"),
                                   ("--logit-bias", "100000:1", "logit_bias"),
                                   ("--allowed-tokens", "7,x", "--allowed-tokens"),
                                   ("--allowed-tokens", "", "--allowed-tokens"),
                                   ("--allowed-tokens", "100000", "allowed_tokens"),
                                   ("--banned-tokens", "@nowhere.json", "nowhere.json"),
                                   ("--logprobs", "1", "--json")]:
            with self.subTest(flag=flag, value=value):
                self.generate(flag, value, says=field)

    def test_text_for_a_model_without_tokenizer(self):
        self.refused("generate", "--model", self.model, "--prompt", "hi", says="tokenizer")
        self.refused("tokenize", "--model", self.model, stdin=b"hi", says="tokenizer")

    def test_not_enough_memory_is_refused_before_loading(self):
        limit = {"TRIREME_MEMORY_LIMIT": "1000000"}
        self.generate(says=["missing", "available 976.56 KiB"], code=1, env=limit)
        self.generate(says="missing", code=1, env=limit, ranks=2)
        self.generate("--kv-memory", "10 parsecs", says="--kv-memory")

    def test_truncated_gguf(self):
        data = self.gguf.read_bytes()
        for part in (0, 3, 20, 200, len(data) // 2, len(data) - 1):
            path = self.folder / "cut.gguf"
            path.write_bytes(data[:part])
            self.generate(model=path, says="cut.gguf")

    def test_broken_safetensors(self):
        model = self.copy_of_model("broken")
        path = next(model.glob("*.safetensors"))
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + size])
        names = [name for name in header if name != "__metadata__"]
        overlapping = json.loads(json.dumps(header))
        overlapping[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]
        huge = json.loads(json.dumps(header))
        huge[names[0]]["shape"] = [2**40, 2**40]

        def with_header(changed):
            text = json.dumps(changed).encode()
            return len(text).to_bytes(8, "little") + text + data[8 + size:]

        for what in (data[:4], data[:100], data[:-5], (2**62).to_bytes(8, "little") + data[8:],
                     with_header(overlapping), with_header(huge),
                     with_header({k: v for k, v in header.items() if k != names[0]}),
                     b"\x10" + b"\0" * 7 + b'{"a":' * 3 + b"1" + data):
            path.write_bytes(what)
            self.generate(model=model, says=path.name)

    def test_config_errors(self):
        model = self.copy_of_model("config")
        path = model / "config.json"
        good = json.loads(path.read_text())
        for change, says in [({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "Llama"]),
                             ({"hidden_size": -4}, "hidden_size"),
                             ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
                             ({"num_key_value_heads": 4}, ["6", "4", "key-value heads"]),
                             ({"hidden_act": "swoosh"}, "swoosh"),
                             ({"vocab_size": "many"}, "vocab_size")]:
            path.write_text(json.dumps({**good, **change}))
            with self.subTest(change=change):
                self.generate(model=model, says=says)
        path.write_text("{" * 100000)
        self.generate(model=model, says="config.json")
        path.unlink()
        self.generate(model=model, says="config.json")

    def test_broken_tokenizer(self):
        model = self.copy_of_model("tokenizer")
        path = model / "tokenizer.json"
        path.write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}))
        self.generate(model=model, says=["tokenizer.json", "merges"])
        path.write_text("not json")
        self.refused("tokenize", "--model", model, stdin=b"a", says="tokenizer.json")

    @unittest.skipUnless(SMOLLM2, "TRIREME_SMOLLM2 does not name the model")
    def test_invalid_utf8(self):
        self.refused("tokenize", "--model", SMOLLM2, stdin=b"ab\xff\xfe", says="UTF-8")
        path = self.folder / "prompt.txt"
        path.write_bytes(b"ab\xc3")
        self.refused("generate", "--model", SMOLLM2, "--prompt-file", path, says="UTF-8")
        for flag in ("--prompt-file", "--tokens"):
            self.refused("generate", "--model", SMOLLM2, flag, self.folder, says="is a folder")

    @unittest.skipUnless(SMOLLM2, "TRIREME_SMOLLM2 does not name the model")
    def test_detokenize(self):
        for stdin in (b"[1, 49152]", b"[-1]", b"nonsense", b"[1.5]"):
            self.refused("detokenize", "--model", SMOLLM2, stdin=stdin, says="trireme")


if __name__ == "__main__":
    os.chdir(tempfile.gettempdir())
    unittest.main()
