// Ids of texts, for the comparison with other tokenizers (tests/fixtures/check_tokenizers.py).
//   tokenizer_ids PATH < RECORDS
// PATH: a file or folder that holds a tokenizer. A record is "LENGTH\nBYTES\n". A line of ids each,
// without special ones around, then a tab and the CRC-32 of the text that they decode to.
#include <fmt/format.h>
#include <zlib.h>

#include <cstdio>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "runtime/tokenizer_folder.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  try {
    const trireme::Tokenizer tokenizer(trireme::read_tokenizer(argv[1]));
    for (std::string line; std::getline(std::cin, line);) {
      std::string text(std::stoul(line), '\0');
      std::cin.read(text.data(), static_cast<std::streamsize>(text.size()));
      std::cin.get();
      const auto ids = tokenizer.encode(text, false);
      const std::string back = tokenizer.decode(ids);
      fmt::print("{}\t{}\n", fmt::join(ids, " "),
                 crc32(0, reinterpret_cast<const Bytef*>(back.data()), back.size()));
    }
  } catch (const trireme::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
}
