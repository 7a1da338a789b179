# Byte-level BPE (runtime/tokenizer.h).
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
trireme_library(trireme_tokenizer
  SOURCES bpe.cc tokenizer.cc tokenizer_added.cc tokenizer_gguf.cc tokenizer_json.cc
          tokenizer_json_steps.cc tokenizer_pretokenize.cc tokenizer_regex.cc
          tokenizer_regex_syntax.cc unicode.cc unicode_nfc.cc unicode_tables.cc
  DEPENDS trireme_base trireme_json PkgConfig::PCRE2 PkgConfig::UTF8PROC)
