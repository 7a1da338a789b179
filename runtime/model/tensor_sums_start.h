// Brings up the sums among a stage's tensor ranks: peer memory, and what was measured before.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "parallel/device_communicator.h"
#include "runtime/model/tensor_sums.h"

namespace trireme {

// Collective over `host`, the tensor ranks in host memory; `device` is the same ranks' communicator
// of device memory, null where they have none. Rows have up to `width` columns. Where the ranks
// can map each other's memory, the ways to sum are measured (a quarter of a second) and kept in
// sum_table_file(), so that the next start reads them.
std::unique_ptr<TensorSums> make_tensor_sums(Communicator& host, DeviceCommunicator* device,
                                             Backend& backend, int64_t width);

// Where tables of this machine are kept: TRIREME_CACHE, or trireme in the user's cache folder.
// Empty: nowhere.
std::string sum_table_file(std::string_view key);

// JSON. parse_sum_table throws kDataLoss.
std::string format_sum_table(const SumTable& table, std::string_view key);
SumTable parse_sum_table(std::string_view text, std::string_view key);

}  // namespace trireme
