// Parts of the program that are loaded only where they are used: the GPU's, so that the program
// starts where no CUDA library exists.
#pragma once

#include <string>
#include <vector>

namespace trireme {

// Loads the shared library `file` (e.g. "libtrireme_nccl.so") and returns its C symbol `entry`.
// Looked for in the folders of $TRIREME_MODULE_PATH (separated by colons), then beside the program,
// in ../lib/trireme and in lib/trireme seen from there. A loaded module stays until the process
// ends. Throws kUnavailable: with the folders where it is in none of them, with the loader's words
// where it cannot be loaded (a library that it needs is missing, say).
void* load_module(const std::string& file, const std::string& entry);

// Where load_module looks, in order.
std::vector<std::string> module_folders();

// Loads a library that a module needs, from the first of `places` (paths, or a bare name for the
// loader's own search) that has it. False if none has: the module's own error then says so.
bool preload_library(const std::vector<std::string>& places);

}  // namespace trireme
