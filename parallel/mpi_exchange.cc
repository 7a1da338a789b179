#include "parallel/mpi_exchange.h"

#include <algorithm>
#include <cstring>

#include "base/thread_pool.h"

namespace trireme {
namespace {

constexpr size_t kWholeBytes = 16 * 1024;   // up to here every rank sums everything itself
constexpr size_t kChunkBytes = 512 * 1024;  // bounds the scratch memory: ranks x this

// out = the terms added in the order given.
void sum_in_order(float* out, const std::vector<const float*>& terms, size_t count) {
  constexpr size_t kBlock = 1024;
  float block[kBlock];
  for (size_t at = 0; at < count; at += kBlock) {
    const size_t n = std::min(kBlock, count - at);
    std::memcpy(block, terms[0] + at, n * sizeof(float));
    for (size_t rank = 1; rank < terms.size(); ++rank) {
      for (size_t i = 0; i < n; ++i) block[i] += terms[rank][at + i];
    }
    std::memcpy(out + at, block, n * sizeof(float));
  }
}

}  // namespace

MpiExchange::~MpiExchange() {
  // MPI may still write there: see MpiLink::wait_posted.
  if (!broken_.empty()) new Buffer(std::move(scratch_));
}

std::byte* MpiExchange::scratch(size_t bytes) {
  if (scratch_.size() < bytes) scratch_ = Buffer(std::max<size_t>(bytes, 64 * 1024));
  return scratch_.data();
}

void MpiExchange::begin(const char* operation) {
  link_->check_open(operation);
  if (!broken_.empty()) {
    fail(ErrorCode::kAborted, "{}: {}: aborted: {}", link_->name(), operation, broken_);
  }
  if (!link_->process().idle()) link_->process().progress();
}

void MpiExchange::finish(const char* operation, size_t bytes) {
  try {
    link_->wait_posted(operation, bytes);
  } catch (const Error& error) {
    broken_ = error.what();
    throw;
  }
}

void MpiExchange::all_reduce_sum(std::span<float> data) {
  begin("all_reduce_sum");
  if (link_->size() == 1) return;
  if (data.size_bytes() <= kWholeBytes) return reduce_whole(data);
  constexpr size_t kMost = kChunkBytes / sizeof(float);
  for (; !data.empty(); data = data.subspan(std::min(kMost, data.size()))) {
    reduce_parts(data.first(std::min(kMost, data.size())));
  }
}

// Scratch: one vector per rank.
void MpiExchange::reduce_whole(std::span<float> data) {
  const size_t stride = (data.size_bytes() + 63) / 64 * 64;
  std::byte* vectors = scratch(stride * static_cast<size_t>(link_->size()));
  gather_chunk(Kind::kAllReduce, "all_reduce_sum", std::as_bytes(data), vectors, stride);
  std::vector<const float*> terms;
  for (int rank = 0; rank < link_->size(); ++rank) {
    terms.push_back(reinterpret_cast<float*>(vectors + static_cast<size_t>(rank) * stride));
  }
  sum_in_order(data.data(), terms, data.size());
}

// Each rank receives everybody's terms of its part, sums them, and sends the sums to everybody.
// Scratch: this rank's vector, then one part per rank.
void MpiExchange::reduce_parts(std::span<float> data) {
  const int size = link_->size(), me = link_->rank();
  const auto part = [&](int rank) {
    const Range range = split_range(static_cast<int64_t>(data.size()), rank, size, 16);
    return data.subspan(static_cast<size_t>(range.begin),
                        static_cast<size_t>(range.end - range.begin));
  };
  const size_t whole = (data.size_bytes() + 63) / 64 * 64;
  const size_t stride = (part(me).size_bytes() + 63) / 64 * 64;
  std::byte* mine = scratch(whole + stride * static_cast<size_t>(size));
  std::byte* parts = mine + whole;
  std::memcpy(mine, data.data(), data.size_bytes());
  const auto in_scratch = [&](int rank) {
    return std::span(mine + (part(rank).data() - data.data()) * sizeof(float),
                     part(rank).size_bytes());
  };
  std::vector<const float*> terms;
  for (int rank = 0; rank < size; ++rank) {
    std::byte* place = parts + static_cast<size_t>(rank) * stride;
    if (rank == me) place = in_scratch(me).data();
    terms.push_back(reinterpret_cast<const float*>(place));
    if (rank == me) continue;
    link_->post_recv("all_reduce_sum", {place, part(me).size_bytes()}, rank, tag(Kind::kAllReduce));
  }
  for (int step = 1; step < size; ++step) {
    const int to = (me + step) % size;
    link_->post_send("all_reduce_sum", in_scratch(to), to, tag(Kind::kAllReduce));
  }
  finish("all_reduce_sum", data.size_bytes());
  sum_in_order(reinterpret_cast<float*>(in_scratch(me).data()), terms, part(me).size());
  for (int rank = 0; rank < size; ++rank) {
    if (rank == me) continue;
    link_->post_recv("all_reduce_sum", in_scratch(rank), rank, tag(Kind::kAllReduce));
  }
  for (int step = 1; step < size; ++step) {
    link_->post_send("all_reduce_sum", in_scratch(me), (me + step) % size, tag(Kind::kAllReduce));
  }
  finish("all_reduce_sum", data.size_bytes());
  std::memcpy(data.data(), mine, data.size_bytes());
}

// out + rank * stride = rank's `in`; `out` is scratch, this rank's place in it the send buffer.
void MpiExchange::gather_chunk(Kind kind, const char* operation, std::span<const std::byte> in,
                               std::byte* out, size_t stride) {
  const int size = link_->size(), me = link_->rank();
  std::byte* mine = out + static_cast<size_t>(me) * stride;
  if (!in.empty()) std::memcpy(mine, in.data(), in.size());
  for (int rank = 0; rank < size; ++rank) {
    if (rank == me) continue;
    link_->post_recv(operation, {out + static_cast<size_t>(rank) * stride, in.size()}, rank,
                     tag(kind));
  }
  for (int step = 1; step < size; ++step) {
    link_->post_send(operation, {mine, in.size()}, (me + step) % size, tag(kind));
  }
  finish(operation, in.size());
}

void MpiExchange::all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  begin("all_gather");
  size_t at = 0;
  do {
    const size_t n = std::min(kChunkBytes, in.size() - at);
    const size_t stride = (n + 63) / 64 * 64;
    std::byte* chunks = scratch(stride * static_cast<size_t>(link_->size()));
    gather_chunk(Kind::kAllGather, "all_gather", in.subspan(at, n), chunks, stride);
    for (int rank = 0; rank < link_->size() && n > 0; ++rank) {
      const auto index = static_cast<size_t>(rank);
      std::memcpy(out.data() + index * in.size() + at, chunks + index * stride, n);
    }
    at += n;
  } while (at < in.size());
}

void MpiExchange::broadcast(std::span<std::byte> data, int root) {
  begin("broadcast");
  size_t at = 0;
  do {
    const size_t n = std::min(kChunkBytes, data.size() - at);
    std::byte* chunk = scratch(n);
    if (link_->rank() == root) {
      if (n > 0) std::memcpy(chunk, data.data() + at, n);
      for (int rank = 0; rank < link_->size(); ++rank) {
        if (rank != root) link_->post_send("broadcast", {chunk, n}, rank, tag(Kind::kBroadcast));
      }
    } else {
      link_->post_recv("broadcast", {chunk, n}, root, tag(Kind::kBroadcast));
    }
    finish("broadcast", data.size());
    if (link_->rank() != root && n > 0) std::memcpy(data.data() + at, chunk, n);
    at += n;
  } while (at < data.size());
}

void MpiExchange::barrier() {
  begin("barrier");
  std::byte* places = scratch(64 * static_cast<size_t>(link_->size()));
  gather_chunk(Kind::kBarrier, "barrier", {}, places, 64);
}

}  // namespace trireme
