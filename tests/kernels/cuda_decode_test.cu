// Decode attention, its plan and the QKV preparation against double precision. A plain program:
// exits 1 if anything is wrong; TRIREME_TEST_SEED repeats a run. With `brief`: what fits a
// sanitizer's patience; with `plan`: what needs no GPU.
#include <memory>

#include "tests/kernels/cuda_decode_fixture.h"

namespace trireme::testing {
namespace {

using cuda::DecodeAttention;
using cuda::DecodeItem;

int integer(std::mt19937& engine, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(engine);
}

// A previous kernel that lets the next one start at once and takes its time to write q, k, v.
__global__ void write_late(uint16_t* to, const uint16_t* from, int64_t count, int64_t cycles) {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  const int64_t begin = clock64();
  while (clock64() - begin < cycles) {
  }
  for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    to[i] = from[i];
  }
}

class DecodeRun {
 public:
  DecodeRun(Batch& batch, int max_rows, bool early) : batch_(batch) {
    CHECK_CUDA(cudaGetDevice(&device_));
    CHECK_CUDA(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device_));
    const Shape& s = batch.s;
    a.q_heads = s.q_heads();
    a.max_items = cuda::decode_max_items(max_rows, s.kv_heads, multiprocessors_);
    items.allocate(a.max_items, DecodeItem{});
    item_count.allocate(1, 0);
    late_.allocate(batch.qkv.host.size(), 0);
    workspace.allocate(cuda::decode_workspace_bytes(a.max_items, a.q_heads, s.head_dim), 0);
    a.q = batch.q();
    a.k = batch.k();
    a.v = batch.v();
    a.q_stride = a.kv_stride = batch.stride;
    a.prepare = batch.prepare();
    a.scale = s.score_scale / std::sqrt(static_cast<float>(s.head_dim));
    a.softcap = s.softcap;
    a.rows = batch.rows.device;
    a.tables = batch.tables();
    a.kv = batch.kv();
    a.items = items.device;
    a.item_count = item_count.device;
    a.early_context = early;
    a.workspace = workspace.device;
    a.out = batch.out.device;
  }

  void plan(int multiprocessors = 0) {
    std::vector<DecodeItem> planned;
    const std::vector<DeviceRow> rows(batch_.rows.host.begin(),
                                      batch_.rows.host.begin() + batch_.row_count);
    cuda::plan_decode(rows, batch_.s.window, batch_.s.block_size, batch_.s.kv_heads,
                      multiprocessors > 0 ? multiprocessors : multiprocessors_, a.max_items,
                      planned);
    // Beyond the plan: what would be fatal to follow.
    DecodeItem poison;
    poison.end = poison.row = poison.next = poison.slot = poison.table = 1 << 30;
    poison.starts = poison.parts = 1;
    std::fill(items.host.begin(), items.host.end(), poison);
    std::copy(planned.begin(), planned.end(), items.host.begin());
    for (size_t i = 0; i < planned.size() && a.early_context; ++i) {
      items.host[i].table = batch_.table_begin.host[items.host[i].row];
    }
    items.upload();
    item_count.host[0] = static_cast<int32_t>(planned.size());
    item_count.upload();
  }

  // q, k, v are poisoned until a kernel just before writes them.
  void launch_after_late_write(cudaStream_t stream) {
    const auto bytes = batch_.qkv.host.size() * 2;
    CHECK_CUDA(
        cudaMemcpyAsync(late_.device, batch_.qkv.device, bytes, cudaMemcpyDeviceToDevice, stream));
    CHECK_CUDA(cudaMemsetAsync(batch_.qkv.device, 0xff, bytes, stream));
    write_late<<<8, 256, 0, stream>>>(batch_.qkv.device, late_.device,
                                      static_cast<int64_t>(batch_.qkv.host.size()), 40000);
    CHECK_CUDA(cudaGetLastError());
    cuda::launch_decode_attention(a, stream);
  }

  // Outputs and cache against the reference.
  void check(const char* what) const {
    const Batch& b = batch_;
    const Shape& s = b.s;
    const auto out = b.out.download();
    auto k_cache = b.k_cache.host, v_cache = b.v_cache.host;
    const auto k_now = b.k_cache.download(), v_now = b.v_cache.download();
    double worst = 0;
    int wrong = 0;
    for (int r = 0; r < b.row_count; ++r) {
      const DeviceRow& row = b.rows.host[r];
      for (int h = 0; h < s.kv_heads; ++h) {
        const auto k = b.key(row.token_begin, row.position, h);
        const auto v = b.value(row.token_begin, h);
        const size_t at = b.slot(r, row.position, h);
        for (int d = 0; d < s.head_dim; ++d) {
          wrong += !near_element(k_now[at + d], k[d]) || v_now[at + d] != to_element(v[d]);
          k_cache[at + d] = k_now[at + d];
          v_cache[at + d] = v_now[at + d];
        }
      }
      for (int head = 0; head < s.q_heads(); ++head) {
        const double error = row_error(r, head, k_cache, v_cache, out);
        worst = std::isnan(error) ? 1e30 : std::max(worst, error);
      }
    }
    EXPECT(worst < (cuda::kElementIsF16 ? 1e-3 : 8e-3), "%s, %s: error %g", what, s.name().c_str(),
           worst);
    EXPECT(wrong == 0, "%s, %s: %d new k, v wrong", what, s.name().c_str(), wrong);
    EXPECT(k_cache == k_now && v_cache == v_now, "%s, %s: the rest of the cache was written", what,
           s.name().c_str());
    int touched = 0;
    for (int t = 0; t < b.max_tokens; ++t) {
      if (b.row_of(t) >= 0) continue;
      for (int i = 0; i < s.q_heads() * s.head_dim; ++i) {
        touched += out[static_cast<size_t>(t) * s.q_heads() * s.head_dim + i] != kPoison;
      }
    }
    EXPECT(touched == 0, "%s, %s: padding rows were written", what, s.name().c_str());
    worst_ = std::max(worst_, worst);
  }
  static double worst_;

  DecodeAttention a;
  Array<DecodeItem> items;
  Array<int32_t> item_count;
  Array<uint8_t> workspace;

 private:
  double row_error(int r, int head, const std::vector<uint16_t>& k_cache,
                   const std::vector<uint16_t>& v_cache, const std::vector<uint16_t>& out) const {
    const Batch& b = batch_;
    const Shape& s = b.s;
    const DeviceRow& row = b.rows.host[r];
    auto q = b.query(row.token_begin, row.position, head);
    for (double& x : q) x = from_element(to_element(x));  // as the products take it
    const int low = b.first_position(row.position);
    std::vector<double> weights, result(s.head_dim, 0.0);
    double max = -INFINITY, sum = 0;
    for (int p = low; p <= row.position; ++p) {
      const uint16_t* k = k_cache.data() + b.slot(r, p, head / s.group);
      double score = 0;
      for (int d = 0; d < s.head_dim; ++d) score += q[d] * from_element(k[d]);
      score *= a.scale;
      if (s.softcap > 0) score = s.softcap * std::tanh(score / s.softcap);
      weights.push_back(score);
      max = std::max(max, score);
    }
    for (double& w : weights) sum += w = std::exp(w - max);
    for (int p = low; p <= row.position; ++p) {
      const uint16_t* v = v_cache.data() + b.slot(r, p, head / s.group);
      for (int d = 0; d < s.head_dim; ++d) result[d] += weights[p - low] / sum * from_element(v[d]);
    }
    // Rounding is held against the length of the result, or of its terms where they cancel out.
    double terms = 0;
    for (int p = low; p <= row.position; ++p) {
      const uint16_t* v = v_cache.data() + b.slot(r, p, head / s.group);
      for (int d = 0; d < s.head_dim; ++d) {
        terms += std::pow(weights[p - low] / sum * from_element(v[d]), 2);
      }
    }
    double difference = 0, norm = 0;
    for (int d = 0; d < s.head_dim; ++d) {
      const double x = from_element(
          out[(static_cast<size_t>(row.token_begin) * s.q_heads() + head) * s.head_dim + d]);
      difference += (x - result[d]) * (x - result[d]);
      norm += result[d] * result[d];
    }
    return std::sqrt(difference / std::max(norm, terms));
  }

  Batch& batch_;
  Array<uint16_t> late_;
  int device_ = 0, multiprocessors_ = 0;
};
double DecodeRun::worst_ = 0;

void run_case(const Shape& s, const std::vector<int>& lengths, std::mt19937& engine) {
  const int rows = static_cast<int>(lengths.size());
  const int longest = *std::max_element(lengths.begin(), lengths.end());
  Batch batch(s, rows, rows + 3, longest, engine);
  std::vector<int> positions;
  for (const int n : lengths) positions.push_back(n - 1);
  batch.fill(positions, std::vector<int>(rows, 1));
  DecodeRun run(batch, rows, engine() % 2 == 0);
  for (int round = 0; round < 2; ++round) {
    run.plan(round == 0 ? 0 : integer(engine, 1, 200));  // other splits than this device's too
    run.launch_after_late_write(nullptr);
    CHECK_CUDA(cudaDeviceSynchronize());
    run.check(round == 0 ? "first launch" : "second launch");
  }
}

// Every head size, group size and option against each other, lengths from one token up.
void test_attention(std::mt19937& engine, bool brief) {
  const std::vector<int> odd = {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 1000};
  const int block_sizes[] = {16, 8, 32, 64, 16, 24};
  int n = 0;
  for (const int dim : {128, 64, 256, 96, 80, 16, 24, 32, 48, 112, 160, 20, 2, 250}) {
    for (int i = 0; i < (brief ? 1 : 6); ++i, ++n) {
      Shape s;
      s.head_dim = dim;
      s.group = std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16}[n % 11];
      s.kv_heads = integer(engine, 1, 3);
      s.block_size = block_sizes[integer(engine, 0, 5)];
      s.rotary_dim = i % 3 == 2 ? dim / 4 * 2 : dim;
      s.magnitude = i == 4 ? 1.19f : 1.0f;
      s.norm = i % 2 == 1;
      s.window = i == 3 ? integer(engine, 1, 200) : 0;
      s.softcap = i == 2 || i == 3 ? 7.0f : 0.0f;
      s.score_scale = i == 5 ? 4.0f : 1.0f;
      std::vector<int> lengths;
      for (int r = integer(engine, 1, 9); r > 0; --r) {
        lengths.push_back(r % 3 == 0 ? integer(engine, 1, 700) : odd[engine() % odd.size()]);
      }
      run_case(s, lengths, engine);
    }
  }
  if (brief) return;
  for (const int dim : {64, 128, 256}) {
    Shape s;
    s.head_dim = s.rotary_dim = dim;
    run_case(s, {5000, 1, 17, 300}, engine);
    s.kv_heads = 1;
    s.group = dim == 128 ? 16 : 5;
    run_case(s, {5000}, engine);
  }
}

// One captured launch, replayed over other lengths, and with rows missing.
void test_graph(std::mt19937& engine) {
  Shape s;
  s.kv_heads = 3;
  s.rotary_dim = 128;
  constexpr int kRows = 6;
  Batch batch(s, kRows, kRows + 3, 3000, engine);
  DecodeRun run(batch, kRows, false);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  run.launch_after_late_write(stream);
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  for (int round = 0; round < 4; ++round) {
    std::vector<int> positions;
    for (int r = round; r < kRows; ++r) positions.push_back(integer(engine, 0, 2999));
    batch.fill(positions, std::vector<int>(positions.size(), 1));
    run.plan();
    for (int i = 0; i < 2; ++i) {
      CHECK_CUDA(cudaGraphLaunch(exec, stream));
      CHECK_CUDA(cudaStreamSynchronize(stream));
      run.check("graph");
    }
  }
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  CHECK_CUDA(cudaStreamDestroy(stream));
}

// With the same plan, what other rows hold does not change a bit of a row; nor does repetition.
void test_independence(std::mt19937& engine) {
  Shape s;
  s.rotary_dim = 64;
  Batch batch(s, 3, 4, 3000, engine);
  batch.fill({2500, 700, 2999}, {1, 1, 1});
  DecodeRun run(batch, 3, false);
  run.plan();
  const auto row_bits = [&] {
    CHECK_CUDA(cudaDeviceSynchronize());
    const auto out = batch.out.download();
    const size_t width = static_cast<size_t>(s.q_heads()) * s.head_dim;
    const auto first = out.begin() + batch.rows.host[1].token_begin * width;
    return std::vector<uint16_t>(first, first + width);
  };
  cuda::launch_decode_attention(run.a, nullptr);
  const auto before = row_bits();
  for (const int r : {0, 2}) {
    for (int p = 0; p <= batch.rows.host[r].position; ++p) {
      for (int d = 0; d < s.head_dim; ++d) {
        batch.v_cache.host[batch.slot(r, p, 0) + d] = to_element(100 * batch.normal());
      }
    }
  }
  batch.v_cache.upload();
  cuda::launch_decode_attention(run.a, nullptr);
  EXPECT(row_bits() == before, "a row's result depends on other rows");
}

void test_prepare(std::mt19937& engine, bool brief) {
  for (const int dim : {128, 64, 80, 96, 256, 16, 24, 20, 48}) {
    for (int i = brief ? 3 : 0; i < 4; ++i) {
      Shape s;
      s.head_dim = dim;
      s.kv_heads = integer(engine, 1, 3);
      s.group = integer(engine, 1, 5);
      s.block_size = i == 0 ? 16 : 8 * integer(engine, 1, 8);
      s.rotary_dim = i == 2 ? dim / 4 * 2 : i == 3 ? dim / 16 * 8 : dim;
      s.magnitude = i == 3 ? 1.3f : 1.0f;
      s.norm = i % 2 == 1;
      const int far = i == 1 ? 131071 - 40 : 300;
      Batch b(s, 2, 150, far + 200, engine);
      b.fill({integer(engine, 0, 40), i == 1 ? far : 17}, {integer(engine, 1, 70), 33});
      std::vector<uint16_t> expected_k = b.k_cache.host, expected_v = b.v_cache.host;
      Array<int32_t> token_rows;
      token_rows.allocate(b.max_tokens, -1);
      for (int t = 0; t < b.max_tokens; ++t) token_rows.host[t] = b.row_of(t);
      token_rows.upload();
      cuda::PrepareQkv p;
      p.q = b.q();
      p.k = b.k();
      p.v = b.v();
      p.q_stride = p.kv_stride = b.stride;
      p.prepare = b.prepare();
      p.q_heads = s.q_heads();
      p.rows = b.rows.device;
      p.token_rows = token_rows.device;
      p.tokens = b.max_tokens;
      p.tables = b.tables();
      p.kv = b.kv();
      cuda::launch_prepare_qkv(p, nullptr);
      CHECK_CUDA(cudaDeviceSynchronize());
      const auto qkv = b.qkv.download();
      const auto k_now = b.k_cache.download(), v_now = b.v_cache.download();
      auto expected = b.qkv.host;
      int wrong = 0;
      for (int t = 0; t < b.max_tokens; ++t) {
        const int r = b.row_of(t);
        if (r < 0) continue;
        const int position = b.rows.host[r].position + t - b.rows.host[r].token_begin;
        for (int h = 0; h < s.q_heads(); ++h) {
          const auto q = b.query(t, position, h);
          for (int d = 0; d < dim; ++d) {
            const size_t at = static_cast<size_t>(t) * b.stride + h * dim + d;
            wrong += !near_element(qkv[at], q[d]);
            expected[at] = qkv[at];
          }
        }
        for (int h = 0; h < s.kv_heads; ++h) {
          const auto k = b.key(t, position, h), v = b.value(t, h);
          const size_t at = b.slot(r, position, h);
          for (int d = 0; d < dim; ++d) {
            wrong += !near_element(k_now[at + d], k[d]) || v_now[at + d] != to_element(v[d]);
            expected_k[at + d] = k_now[at + d];
            expected_v[at + d] = v_now[at + d];
          }
        }
      }
      EXPECT(wrong == 0, "prepare, %s: %d values wrong", s.name().c_str(), wrong);
      EXPECT(expected == qkv && expected_k == k_now && expected_v == v_now,
             "prepare, %s: wrote elsewhere", s.name().c_str());
    }
  }
}

void test_plan(std::mt19937& engine) {
  for (int round = 0; round < 3000; ++round) {
    const int kv_heads = integer(engine, 1, 12), multiprocessors = integer(engine, 1, 150);
    const int window = round % 3 == 0 ? integer(engine, 1, 3000) : 0;
    const int longest = 1 << integer(engine, 0, 17);
    std::vector<DeviceRow> rows(integer(engine, 0, 300));
    for (DeviceRow& row : rows) {
      row = {integer(engine, 0, 999), 1,
             integer(engine, 0, engine() % 8 == 0 ? longest : longest / 16), 0};
    }
    const int count = static_cast<int>(rows.size());
    const int room = cuda::decode_max_items(count, kv_heads, multiprocessors);
    const int max_items = round % 2 == 0 ? room : integer(engine, count, room);
    std::vector<DecodeItem> items(5);
    cuda::plan_decode(rows, window, 16, kv_heads, multiprocessors, max_items, items);
    const int item_count = static_cast<int>(items.size());
    bool good = item_count <= max_items && item_count >= count;
    // Spans: they start with the first items, every item is in one, and they are of equal work.
    std::vector<int> seen(item_count, 0);
    int spans = 0;
    int64_t heaviest = 0;
    for (int i = 0; i < item_count; ++i) {
      if (items[i].starts == 0) continue;
      good = good && spans++ == i;
      int64_t work = 0;
      for (int j = i; j >= 0 && good; j = items[j].next) {
        good = j < item_count && ++seen[j] == 1 && (j == i || items[j].starts == 0);
        work += items[j].end - items[j].begin + 48;
      }
      heaviest = std::max(heaviest, work);
    }
    good = good && std::count(seen.begin(), seen.end(), 1) == item_count;
    // Rows: their parts in consecutive slots, covering what the row sees.
    std::sort(items.begin(), items.end(),
              [](const DecodeItem& x, const DecodeItem& y) { return x.slot < y.slot; });
    int i = 0;
    int64_t total = 0;
    for (int r = 0; r < count && good; ++r) {
      int at = window > 0 ? std::max(0, rows[r].position + 1 - window) : 0;
      const int parts = i < item_count ? items[i].parts : 0;
      good = parts > 0 && i + parts <= item_count;
      for (int part = 0; part < parts && good; ++part, ++i) {
        const DecodeItem& item = items[i];
        good = item.row == r && item.part == part && item.parts == parts && item.slot == i &&
               item.begin == at && item.end > at && (part + 1 == parts || item.end % 64 == 0) &&
               item.position == rows[r].position && item.token == rows[r].token_begin;
        at = item.end;
        total += item.end - item.begin + (part == 0 ? 48 : 0);
      }
      good = good && at == rows[r].position + 1;
    }
    good = good && i == item_count;
    const int most = std::max(1, 2 * multiprocessors / kv_heads);
    good = good && spans <= most;
    if (max_items == room && count > 0) {
      const int64_t fair = total / std::clamp<int64_t>(total / 128, 1, most);
      good = good && heaviest <= fair + 320;
    }
    EXPECT(good, "plan of %d rows, %d KV heads, %d multiprocessors, window %d, room %d: %d items",
           count, kv_heads, multiprocessors, window, max_items, item_count);
  }
}

}  // namespace
}  // namespace trireme::testing

int main(int argc, char** argv) {
  using namespace trireme::testing;
  const char* given = std::getenv("TRIREME_TEST_SEED");
  const auto seed = given != nullptr ? static_cast<uint32_t>(std::stoul(given))
                                     : static_cast<uint32_t>(std::random_device{}());
  std::printf("TRIREME_TEST_SEED=%u\n", seed);
  std::mt19937 engine(seed);
  test_plan(engine);
  int devices = 0;
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "plan") return failures == 0 ? 0 : 1;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no GPU: only the plan was tested\n");
    return failures == 0 ? 77 : 1;
  }
  test_prepare(engine, mode == "brief");
  test_attention(engine, mode == "brief");
  test_graph(engine);
  test_independence(engine);
  std::printf("%d failures, worst error %g\n", failures, DecodeRun::worst_);
  return failures == 0 ? 0 : 1;
}
