# Text to token ids and back (runtime/tokenizer.h).
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
trireme_library(trireme_tokenizer
  SOURCES base64.cc bpe.cc bpe_symbols.cc charsmap.cc tokenizer.cc tokenizer_added.cc tokenizer_decode.cc
          tokenizer_folder.cc tokenizer_gguf.cc tokenizer_json.cc tokenizer_json_steps.cc
          tokenizer_normalize.cc tokenizer_pretokenize.cc tokenizer_ranks.cc tokenizer_regex.cc
          tokenizer_regex_syntax.cc tokenizer_sentencepiece.cc unicode.cc unicode_forms.cc
          unicode_tables.cc unigram.cc
  DEPENDS trireme_base trireme_json PkgConfig::PCRE2 PkgConfig::UTF8PROC)
