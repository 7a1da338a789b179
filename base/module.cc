#include "base/module.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/error.h"

namespace trireme {

std::vector<std::string> module_folders() {
  std::vector<std::string> folders;
  if (const char* path = std::getenv("TRIREME_MODULE_PATH")) {
    std::istringstream list(path);
    for (std::string folder; std::getline(list, folder, ':');) {
      if (!folder.empty()) folders.push_back(folder);
    }
  }
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return folders;
  const auto here = program.parent_path();
  for (const auto& folder : {here, here.parent_path() / "lib/trireme", here / "lib/trireme"}) {
    folders.push_back(folder.string());
  }
  return folders;
}

void* load_module(const std::string& file, const std::string& entry) {
  std::string looked;
  for (const std::string& folder : module_folders()) {
    const std::string path = folder + "/" + file;
    looked += (looked.empty() ? "" : ", ") + folder;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (module == nullptr) fail(ErrorCode::kUnavailable, "{} does not load: {}", file, dlerror());
    void* symbol = dlsym(module, entry.c_str());
    if (symbol == nullptr) fail(ErrorCode::kUnavailable, "{} has no {}", path, entry);
    return symbol;
  }
  fail(ErrorCode::kUnavailable,
       "{} is not here: this build has it not, or it lies in none of {} (TRIREME_MODULE_PATH names "
       "further folders)",
       file, looked);
}

bool preload_library(const std::vector<std::string>& places) {
  for (const std::string& place : places) {
    if (dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr) return true;
  }
  return false;
}

}  // namespace trireme
