#!/usr/bin/env python3
"""Quantizes a GGUF model to another format, by plain rounding (tests/fixtures/gguf_quants.py).

usage: quantize_gguf.py IN.gguf OUT.gguf FORMAT      FORMAT: q4_0, q5_1, q2_k, iq4_nl, ...

Matrices whose rows are not whole blocks of 256 take a format of blocks of 32 in place of a K format,
as llama.cpp has it. Needs gguf and numpy.
"""
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/fixtures"))
from gguf_quants import quantize  # noqa: E402

NARROW = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
OWN_FIELDS = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def convert(source, target, kind):
    reader = gguf.GGUFReader(source)
    out = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith(OWN_FIELDS):
            out.add_key_value(key, field.contents(), field.types[0],
                              field.types[1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        chosen = Q.F32 if values.ndim < 2 else Q[kind]
        if chosen != Q.F32 and values.shape[-1] % gguf.GGML_QUANT_SIZES[chosen][0] != 0:
            chosen = Q[NARROW[kind]]
        out.add_tensor(tensor.name, quantize(values, chosen), raw_dtype=chosen)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    convert(sys.argv[1], sys.argv[2], sys.argv[3].upper())
