#include "kernels/cuda/backend.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device_logits.h"
#include "kernels/cuda/elementwise.h"

namespace trireme::cuda {
namespace {

DeviceKv device_kv(const KvLayerView& kv) {
  return {kv.k, kv.v, kv.blocks, kv.kv_heads, kv.head_dim, kv.block_size};
}

HeadPrepare head_prepare(const QkvPrepare& qkv) {
  return {qkv.q_norm,        qkv.k_norm,          qkv.norm_eps,
          qkv.rope.inv_freq, qkv.rope.rotary_dim, qkv.rope.magnitude};
}

// Steps of up to this many decode rows are recorded, padded to one of few sizes.
constexpr int64_t kMostRecordedRows = 512;

bool adjacent(const Weight& a, const Weight& b) {
  return a.data.data() + a.data.size() == b.data.data() && a.cols == b.cols;
}

bool same_matrix(const MatrixView& a, const MatrixView& b) {
  return a.stride == b.stride && a.dtype == b.dtype && a.rows == b.rows &&
         static_cast<std::byte*>(a.data) + a.cols * static_cast<int64_t>(size_of(a.dtype)) ==
             b.data;
}

// Two parts that are one product: rows of one weight, columns of one output.
bool mergeable(const LinearPart& a, const LinearPart& b) {
  const bool biases = a.bias == nullptr ? b.bias == nullptr : a.bias + a.weight->rows == b.bias;
  return a.accumulate == b.accumulate && biases && adjacent(*a.weight, *b.weight) &&
         same_matrix(a.out, b.out);
}

GemmOut kind_of(const LinearPart& part) {
  if (part.out.dtype == kElement) return GemmOut::kElement;
  return part.accumulate ? GemmOut::kAddF32 : GemmOut::kF32;
}

}  // namespace

CudaBackend::CudaBackend(ThreadPool& pool, int device) : device_(device), pool_(pool) {
  TRIREME_CUDA(cudaSetDevice(device));
  cudaDeviceProp properties{};
  TRIREME_CUDA(cudaGetDeviceProperties(&properties, device));
  if (properties.major < 8) {
    fail(ErrorCode::kUnimplemented, "{} (compute capability {}.{}) is too old: 8.0 is needed",
         properties.name, properties.major, properties.minor);
  }
  multiprocessors_ = properties.multiProcessorCount;
  description_ = fmt::format("cuda {} (GPU {}, sm_{}{}), {}", properties.name, device,
                             properties.major, properties.minor, to_string(kElement));
  TRIREME_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  upload_ = std::make_unique<WeightUpload>(pool_, stream_);
  arena_ = std::make_unique<StepArena>(stream_, multiprocessors_);
  timer_ = std::make_unique<CudaStepTimer>(device, stream_, [this] { forget_graphs(); });
  cublas_ = std::make_unique<CublasGemm>();
  const auto zeroed = [this](size_t bytes) {
    Buffer buffer = allocate(bytes);
    if (bytes > 0) TRIREME_CUDA(cudaMemsetAsync(buffer.data(), 0, bytes, stream_));
    return buffer;
  };
  skinny_workspace_ = zeroed(skinny_workspace_bytes());
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_);
  forget_graphs();
  upload_.reset();
  timer_.reset();
  arena_.reset();
  cublas_.reset();
  cudaFreeHost(host_);
  cudaStreamDestroy(stream_);
}

bool CudaBackend::supports_kv(const KvShape& shape) const {
  return shape.dtype == kElement && shape.head_dim % 8 == 0 &&
         decode_attention_supports(shape.head_dim, shape.group) &&
         prefill_attention_supports(shape.head_dim, shape.block_size);
}

std::optional<DeviceMemory> CudaBackend::device_memory() const {
  size_t free = 0, total = 0;
  TRIREME_CUDA(cudaMemGetInfo(&free, &total));
  return DeviceMemory{static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

// The step's inputs (step_arena), decode attention's parts, and what a sampling round of the most
// rows needs: 256 bucket masses, twenty candidates and partial answers a row, and the bins and
// lists of cuts.
int64_t CudaBackend::workspace_bytes(const WorkspaceShape& shape) const {
  const size_t decode = decode_workspace_bytes(StepArena::kMaxItems, shape.q_heads, shape.head_dim);
  const auto rows = static_cast<size_t>(shape.vocab > 0 ? max_logit_rows() : 0);
  const size_t sampling =
      rows * (kMassBuckets * (sizeof(int64_t) + sizeof(int32_t)) + 20 * sizeof(Candidate) +
              static_cast<size_t>(logit_parts(shape.vocab) + 2) * sizeof(LogitAnswer)) +
      (rows > 0 ? cut_bins_bytes(ChosenTokens::kMost) + cut_lists_bytes(ChosenTokens::kMost) : 0);
  return static_cast<int64_t>(decode + sampling + StepArena::first_bytes(shape.kv_groups));
}

Buffer CudaBackend::allocate(size_t bytes) {
  if (bytes == 0) return {};
  void* pointer = nullptr;
  TRIREME_CUDA(cudaSetDevice(device_));
  const cudaError_t status = cudaMalloc(&pointer, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not of later calls
    const auto memory = *device_memory();
    fail(ErrorCode::kResourceExhausted, "GPU {}: cannot allocate {} bytes, {} of {} are free",
         device_, bytes, memory.free, memory.total);
  }
  TRIREME_CUDA(status);
  return {static_cast<std::byte*>(pointer), bytes,
          std::shared_ptr<void>(pointer, [](void* memory) { cudaFree(memory); })};
}

Buffer CudaBackend::upload(std::span<const float> values) {
  Buffer buffer = allocate(values.size_bytes());
  if (!values.empty()) {
    // In the ops' own order: cudaMemcpy may return before its last bytes have arrived.
    TRIREME_CUDA(cudaMemcpyAsync(buffer.data(), values.data(), values.size_bytes(),
                                 cudaMemcpyHostToDevice, stream_));
    synchronize();
  }
  return buffer;
}

void CudaBackend::synchronize() { TRIREME_CUDA(cudaStreamSynchronize(stream_)); }

void CudaBackend::check() {
  const cudaError_t status = cudaStreamQuery(stream_);
  if (status != cudaErrorNotReady) TRIREME_CUDA(status);
}

MatrixView CudaBackend::read_back(MatrixView view) {
  const size_t bytes = static_cast<size_t>(view.rows * view.cols) * size_of(view.dtype);
  if (bytes > host_bytes_) {
    TRIREME_CUDA(cudaFreeHost(host_));
    host_ = nullptr;
    host_bytes_ = bytes + bytes / 4;
    TRIREME_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host_), host_bytes_));
  }
  const size_t width = static_cast<size_t>(view.cols) * size_of(view.dtype);
  if (bytes > 0) {
    TRIREME_CUDA(cudaMemcpy2DAsync(
        host_, width, view.data, static_cast<size_t>(view.stride) * size_of(view.dtype), width,
        static_cast<size_t>(view.rows), cudaMemcpyDeviceToHost, stream_));
  }
  synchronize();
  return {host_, view.dtype, view.rows, view.cols, view.cols};
}

Weight CudaBackend::make_weight(const WeightSlice& slice) {
  return std::move(make_weights({&slice, 1}).front());
}

int64_t CudaBackend::weight_bytes(const WeightSlice& slice) const {
  return slice.rows * slice.col_count * kElementBytes;
}

// One matrix after the other in one allocation, so that those of equal width are one product.
std::vector<Weight> CudaBackend::make_weights(std::span<const WeightSlice> slices) {
  size_t total = 0;
  for (const WeightSlice& slice : slices) {
    row_bytes(slice.format, slice.cols);  // refuses parts of blocks
    if (slice.col_begin < 0 || slice.col_count < 0 || slice.rows < 0 ||
        slice.col_begin + slice.col_count > slice.cols ||
        (is_plain(slice.format) && slice.col_count != slice.cols)) {
      fail(ErrorCode::kInvalidArgument, "{} weight [{}, {}]: columns {} + {} are not a part of it",
           traits(slice.format).name, slice.rows, slice.cols, slice.col_begin, slice.col_count);
    }
    if (slice.col_count % 8 != 0) {
      fail(ErrorCode::kUnimplemented,
           "the GPU takes weights whose columns are a multiple of 8, not {}", slice.col_count);
    }
    total += static_cast<size_t>(weight_bytes(slice));
  }
  const Buffer all = allocate(total);
  std::vector<Weight> weights;
  size_t offset = 0;
  for (const WeightSlice& slice : slices) {
    Weight weight;
    weight.format = kElementIsF16 ? QuantFormat::kF16 : QuantFormat::kBF16;
    weight.rows = slice.rows;
    weight.cols = weight.col_count = slice.col_count;
    const auto bytes = static_cast<size_t>(weight_bytes(slice));
    weight.data = all.part(offset, bytes);
    upload_->run(slice, weight.data.data());
    offset += bytes;
    weights.push_back(std::move(weight));
  }
  return weights;
}

void CudaBackend::begin_step(const StepInputs& inputs) {
  TRIREME_CUDA(cudaSetDevice(device_));  // the engine's thread is not the one that made this
  if (arena_->fill(inputs, inputs.kv_heads, inputs.block_size, inputs.head_dim)) forget_graphs();
}

int64_t CudaBackend::padded_rows(int64_t rows) const {
  if (rows <= kMaxSkinnyTokens || rows > kMostRecordedRows) return rows;
  const int64_t step = rows <= 64 ? 8 : rows <= 128 ? 16 : 32;
  return (rows + step - 1) / step * step;
}

void CudaBackend::forget_recorded() {
  synchronize();
  forget_graphs();
}

void CudaBackend::forget_graphs() {
  for (auto& [key, recorded] : recorded_) {
    if (recorded.graph != nullptr) cudaGraphExecDestroy(recorded.graph);
  }
  recorded_.clear();
}

// The first call with a key runs as it is (algorithms are chosen, kernels are loaded), the second
// is captured, and from then on the graph is replayed.
void CudaBackend::repeat(const RepeatKey& key, const std::function<void()>& work) {
  if (key.rows > kMostRecordedRows) return work();
  if (recorded_[key].calls++ == 0) return work();
  if (recorded_[key].graph == nullptr) {
    cudaGraph_t graph = nullptr;
    TRIREME_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(stream_, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      throw;
    }
    TRIREME_CUDA(cudaStreamEndCapture(stream_, &graph));
    // Looked up anew: `work` may have made the backend forget what was recorded.
    const cudaError_t status = cudaGraphInstantiate(&recorded_[key].graph, graph, 0);
    cudaGraphDestroy(graph);
    TRIREME_CUDA(status);
  }
  TRIREME_CUDA(cudaGraphLaunch(recorded_[key].graph, stream_));
}

void CudaBackend::product(Gemm gemm) {
  if (gemm.tokens == 0 || gemm.rows == 0) return;
  if (gemm.tokens <= kMaxSkinnyTokens) {
    launch_skinny_gemm(gemm, skinny_workspace_.data(), stream_);
  } else {
    cublas_->run(gemm, stream_);
  }
}

// gemm holds x; neighbouring parts are one product.
void CudaBackend::products(Gemm gemm, std::span<const LinearPart> parts) {
  for (size_t i = 0; i < parts.size();) {
    size_t end = i + 1;
    gemm.rows = parts[i].weight->rows;
    while (end < parts.size() && mergeable(parts[end - 1], parts[end])) {
      gemm.rows += parts[end++].weight->rows;
    }
    gemm.weight = parts[i].weight->data.data();
    gemm.cols = parts[i].weight->cols;
    gemm.bias = parts[i].bias;
    gemm.kind = kind_of(parts[i]);
    gemm.y = parts[i].out.data;
    gemm.y_stride = parts[i].out.stride;
    product(gemm);
    i = end;
  }
}

void CudaBackend::linear(MatrixView x, std::span<const LinearPart> parts) {
  Gemm gemm;
  gemm.x = x.data;
  gemm.x_stride = x.stride;
  gemm.tokens = static_cast<int32_t>(x.rows);
  products(gemm, parts);
}

void CudaBackend::norm_linear(MatrixView x, const float* norm, float eps, MatrixView normed,
                              std::span<const LinearPart> parts) {
  if (x.rows > kMaxNormedTokens) {
    rms_norm(x, norm, eps, normed);
    return linear(normed, parts);
  }
  Gemm gemm;
  gemm.x = x.data;
  gemm.x_stride = x.stride;
  gemm.tokens = static_cast<int32_t>(x.rows);
  gemm.norm = norm;
  gemm.norm_eps = eps;
  products(gemm, parts);
}

void CudaBackend::gated_linear(MatrixView x, const float* norm, float eps, MatrixView normed,
                               std::span<const LinearPart, 2> parts, Activation activation) {
  const bool biased = parts[0].bias != nullptr || parts[1].bias != nullptr;
  if (x.rows > kMaxSkinnyTokens || biased || !mergeable(parts[0], parts[1])) {
    return Backend::gated_linear(x, norm, eps, normed, parts, activation);
  }
  if (norm != nullptr && x.rows > kMaxNormedTokens) {
    rms_norm(x, norm, eps, normed);
    x = normed;
    norm = nullptr;
  }
  Gemm gemm;
  gemm.x = x.data;
  gemm.x_stride = x.stride;
  gemm.tokens = static_cast<int32_t>(x.rows);
  gemm.norm = norm;
  gemm.norm_eps = eps;
  gemm.weight = parts[0].weight->data.data();
  gemm.rows = 2 * parts[0].weight->rows;
  gemm.cols = parts[0].weight->cols;
  gemm.kind = activation == Activation::kSilu ? GemmOut::kSwiGlu : GemmOut::kGeGlu;
  gemm.y = parts[0].out.data;
  gemm.y_stride = parts[0].out.stride;
  product(gemm);
}

const int32_t* CudaBackend::on_device(std::span<const int32_t> values, bool step,
                                      const int32_t* there) {
  if (step) return there;
  if (scratch_ids_.size() < values.size_bytes()) scratch_ids_ = allocate(values.size_bytes() * 2);
  TRIREME_CUDA(cudaMemcpyAsync(scratch_ids_.data(), values.data(), values.size_bytes(),
                               cudaMemcpyHostToDevice, stream_));
  return scratch_ids_.as<int32_t>();
}

void CudaBackend::embed(std::span<const int32_t> tokens, const Weight& table, int64_t vocab_begin,
                        float scale, MatrixView out) {
  const bool step = arena_->has_tokens(tokens);
  const int32_t* ids = on_device(tokens, step, arena_->tokens());
  const int64_t count = step ? out.rows : static_cast<int64_t>(tokens.size());
  Embed embed;
  embed.tokens = ids;
  embed.slots = step && !newest_.empty() ? arena_->token_slots() : nullptr;
  embed.newest = newest_.as<int32_t>();
  embed.table = table.data.data();
  embed.vocab_begin = vocab_begin;
  embed.vocab_count = table.rows;
  embed.cols = out.cols;
  embed.scale = scale;
  launch_embed(embed, count, out.f32(), stream_);
}

void CudaBackend::rms_norm(MatrixView x, const float* weight, float eps, MatrixView out) {
  launch_rms_norm(x.f32(), nullptr, 0, weight, eps, x.rows, x.cols, out.data, stream_);
}

void CudaBackend::add_rms_norm(MatrixView residual, MatrixView delta, const float* weight,
                               float eps, MatrixView out) {
  launch_rms_norm(residual.f32(), delta.data, delta.stride, weight, eps, residual.rows,
                  residual.cols, out.data, stream_);
}

void CudaBackend::add_normed(MatrixView residual, MatrixView delta, const float* delta_norm,
                             const float* weight, float eps, MatrixView out) {
  launch_add_normed(residual.f32(), delta.data, delta.stride, delta_norm, weight, eps,
                    residual.rows, residual.cols, out.data, stream_);
}

void CudaBackend::gated_activation(MatrixView gate, MatrixView up, Activation activation,
                                   MatrixView out) {
  launch_gated_activation(gate.data, gate.stride, up.data, up.stride,
                          activation == Activation::kGeluTanh, gate.rows, gate.cols, out.data,
                          out.stride, stream_);
}

void CudaBackend::gather_rows(MatrixView x, std::span<const int32_t> indices, MatrixView out) {
  const bool step = arena_->has_logit_tokens(indices);
  const int32_t* ids = on_device(indices, step, arena_->logit_tokens());
  const int64_t count = step ? out.rows : static_cast<int64_t>(indices.size());
  launch_gather_rows(x.f32(), ids, count, x.cols, out.f32(), stream_);
}

void CudaBackend::copy(MatrixView from, MatrixView to) {
  const auto bytes = static_cast<size_t>(from.rows * from.cols) * size_of(from.dtype);
  if (bytes == 0) return;
  TRIREME_CUDA(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream_));
}

void CudaBackend::fill_bytes(MatrixView x, uint8_t value) {
  TRIREME_CUDA(cudaMemset2DAsync(x.data, static_cast<size_t>(x.stride) * size_of(x.dtype), value,
                                 static_cast<size_t>(x.cols) * size_of(x.dtype),
                                 static_cast<size_t>(x.rows), stream_));
}

int CudaBackend::group_of(std::span<const AttentionRow> rows, int window, const KvLayerView& kv) {
  const int group = arena_->group_of(rows);
  if (group >= 0) return group;
  const std::vector<AttentionRow> copy(rows.begin(), rows.end());
  StepInputs inputs;
  inputs.groups = {&copy, 1};
  inputs.windows = {&window, 1};
  if (arena_->fill(inputs, kv.kv_heads, kv.block_size, kv.head_dim)) forget_graphs();
  arena_->plan_all_tiles(kv.head_dim);
  arena_->forget_inputs();
  return 0;
}

void CudaBackend::decode_attention(const QkvPrepare& qkv, const AttentionParams& params, int group,
                                   const KvLayerView& kv, MatrixView out) {
  const size_t bytes = decode_workspace_bytes(StepArena::kMaxItems, params.q_heads, kv.head_dim);
  if (decode_workspace_.size() < bytes) {
    synchronize();
    forget_graphs();
    decode_workspace_ = allocate(bytes);
    TRIREME_CUDA(cudaMemsetAsync(decode_workspace_.data(), 0, bytes, stream_));
  }
  const StepGroup step = arena_->group(group);
  DecodeAttention args;
  args.q = qkv.q.data;
  args.k = qkv.k.data;
  args.v = qkv.v.data;
  args.q_stride = qkv.q.stride;
  args.kv_stride = qkv.k.stride;
  args.prepare = head_prepare(qkv);
  args.q_heads = params.q_heads;
  args.scale = params.scale;
  args.softcap = params.softcap;
  args.rows = arena_->rows();
  args.tables = step.tables;
  args.kv = device_kv(kv);
  args.items = step.items;
  args.item_count = step.item_count;
  args.max_items = step.max_items;
  args.early_context = true;  // a step begins with the arena's copy, which waits for the last step
  args.workspace = decode_workspace_.data();
  args.out = out.data;
  launch_decode_attention(args, stream_);
}

void CudaBackend::run_prepare(const QkvPrepare& qkv, int group, const KvLayerView& kv,
                              bool all_rows) {
  PrepareQkv args;
  args.q = qkv.q.data;
  args.k = qkv.k.data;
  args.v = qkv.v.data;
  args.q_stride = qkv.q.stride;
  args.kv_stride = qkv.k.stride;
  args.prepare = head_prepare(qkv);
  args.q_heads = qkv.q_heads;
  args.rows = arena_->rows();
  args.token_rows = all_rows ? arena_->all_token_rows() : arena_->token_rows();
  args.tokens = arena_->token_count();
  args.tables = arena_->group(group).tables;
  args.kv = device_kv(kv);
  launch_prepare_qkv(args, stream_);
}

void CudaBackend::prefill_attention(MatrixView q, const AttentionParams& params, int group,
                                    const KvLayerView& kv, MatrixView out, bool all_rows) {
  PrefillAttention args;
  args.q = q.data;
  args.q_stride = q.stride;
  args.q_heads = params.q_heads;
  args.scale = params.scale;
  args.softcap = params.softcap;
  args.window = params.window;
  args.rows = arena_->rows();
  args.tables = arena_->group(group).tables;
  args.kv = device_kv(kv);
  args.tiles = all_rows ? arena_->all_tiles() : arena_->tiles();
  args.tile_count = all_rows ? arena_->all_tile_count() : arena_->tile_count();
  args.out = out.data;
  launch_prefill_attention(args, stream_);
}

void CudaBackend::prepare_qkv(const QkvPrepare& qkv, std::span<const AttentionRow> rows,
                              const KvLayerView& kv) {
  run_prepare(qkv, group_of(rows, 0, kv), kv, true);
}

void CudaBackend::paged_attention(MatrixView q, const AttentionParams& params,
                                  std::span<const AttentionRow> rows, const KvLayerView& kv,
                                  MatrixView out) {
  const int group = group_of(rows, params.window, kv);
  if (arena_->all_tile_count() == 0) arena_->plan_all_tiles(kv.head_dim);
  prefill_attention(q, params, group, kv, out, true);
}

void CudaBackend::attention(const QkvPrepare& qkv, const AttentionParams& params,
                            std::span<const AttentionRow> rows, const KvLayerView& kv,
                            MatrixView out) {
  const int group = group_of(rows, params.window, kv);
  if (arena_->has_prefill()) {
    run_prepare(qkv, group, kv, false);
    prefill_attention(qkv.q, params, group, kv, out, false);
  }
  if (arena_->has_decode()) decode_attention(qkv, params, group, kv, out);
}

}  // namespace trireme::cuda
