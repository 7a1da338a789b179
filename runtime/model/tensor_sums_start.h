// Brings up the sums among a stage's tensor ranks: peer memory, and what was measured before.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/device_communicator.h"
#include "parallel/ledger.h"
#include "runtime/model/tensor_sums.h"

namespace trireme {

// Collective over `host`, the tensor ranks in host memory; `device` is the same ranks' communicator
// of device memory, null where they have none. Rows have up to `width` columns. Sums that pass by
// the communicator are written into `ledger`, which may be null: `group` is these ranks in the
// world.
std::unique_ptr<TensorSums> make_tensor_sums(Communicator& host, DeviceCommunicator* device,
                                             Backend& backend, int64_t width,
                                             Ledger* ledger = nullptr,
                                             std::vector<int32_t> group = {});

// Where the ranks map each other's memory: measures the ways to sum (a quarter of a second), or
// takes what an earlier start has measured and kept in sum_table_file(). Collective as above.
void tune_sums(TensorSums& sums, Communicator& host, const DeviceCommunicator& device,
               const SumBuffers& buffers);

// Where tables of this machine are kept: TRIREME_CACHE, or trireme in the user's cache folder.
// Empty: nowhere.
std::string sum_table_file(std::string_view key);

// JSON. parse_sum_table throws kDataLoss.
std::string format_sum_table(const SumTable& table, std::string_view key);
SumTable parse_sum_table(std::string_view text, std::string_view key);

}  // namespace trireme
