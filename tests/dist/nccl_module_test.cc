// The module without a GPU: what it does before it touches one, and what it says where there is
// none.
#include "parallel/nccl_module.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/module.h"

namespace trireme {
namespace {

std::string message_of(const std::function<void()>& call, ErrorCode code) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

TEST(NcclModule, KeepsMulticastOffWhateverTheEnvironmentSays) {
  setenv("NCCL_NVLS_ENABLE", "1", 1);
  void* entry = load_module(kNcclModuleFile, kNcclModuleEntry);
  const NcclModule* module = reinterpret_cast<decltype(&trireme_nccl_module)>(entry)();
  EXPECT_STREQ(module->build, kNcclModuleBuild);
  EXPECT_STREQ(std::getenv("NCCL_NVLS_ENABLE"), "0");
}

TEST(NcclModule, ErrorsOfTheModuleAreErrorsOfTheProgram) {
  auto alone = make_single_communicator();
  // Without a driver CUDA says so; with one there is no such GPU.
  try {
    make_nccl_communicator(*alone, 1000, "device");
    FAIL() << "GPU 1000";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find("device: rank 0 on GPU 1000 of "), 0u) << error.what();
  }
}

TEST(NcclModule, SaysWhichLibraryDoesNotLoad) {
  auto alone = make_single_communicator();
  setenv("TRIREME_NCCL", "/nowhere/libnccl.so.2", 1);
  const std::string text =
      message_of([&] { make_nccl_communicator(*alone, 0, "device"); }, ErrorCode::kUnavailable);
  unsetenv("TRIREME_NCCL");
  EXPECT_NE(text.find("TRIREME_NCCL: /nowhere/libnccl.so.2 does not load"), std::string::npos);
}

TEST(NcclModule, SaysWhereItLooked) {
  const std::string text =
      message_of([] { load_module("libtrireme_nothing.so", "entry"); }, ErrorCode::kUnavailable);
  EXPECT_NE(text.find(std::getenv("TRIREME_MODULE_PATH")), std::string::npos) << text;
  EXPECT_NE(text.find("libtrireme_nothing.so"), std::string::npos) << text;
  const std::string symbol =
      message_of([] { load_module(kNcclModuleFile, "no_such_entry"); }, ErrorCode::kUnavailable);
  EXPECT_NE(symbol.find("no_such_entry"), std::string::npos) << symbol;
}

}  // namespace
}  // namespace trireme
