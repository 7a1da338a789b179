#include "tests/support/model_runner.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "tests/support/run_ranks.h"

namespace trireme {

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

ModelRank::ModelRank(const WeightSource& source, const ParallelLayout& layout, Communicator& world,
                     const RunOptions& options, Logits& shared)
    : layout_(layout),
      world_(world),
      options_(options),
      tp_(world.split(layout.stage_of(world.rank()), "tp")),
      edge_(world, layout),
      backend_(make_cpu_backend(pool_, options.isa)),
      groups_(kv_groups(source.config())),
      shared_(shared) {
  const int rank = world.rank();
  const ModelConfig& config = source.config();
  decoder_ =
      std::make_unique<Decoder>(config, layout, rank, load_weights(source, layout, rank, *backend_),
                                *backend_, *tp_, options.max_tokens);
  const int per_sequence = (options.max_context + options.block_size - 1) / options.block_size;
  const std::vector<int32_t> blocks(groups_.windows.size(), per_sequence * options.sequences);
  cache_ = std::make_unique<KvCache>(config, groups_, layout.stage(rank).layers,
                                     static_cast<int>(layout.shard(rank).kv_heads.count),
                                     options.kv_dtype, options.block_size, blocks, *backend_);
  // Nothing may depend on KV that was never written: NaN would spread to every logit.
  for (int64_t i = layout.stage(rank).layers.begin; i < layout.stage(rank).layers.end(); ++i) {
    const KvLayerView& view = cache_->layer(static_cast<int>(i));
    const auto bytes =
        static_cast<size_t>(int64_t{blocks[0]} * view.kv_heads * view.block_size * view.head_dim) *
        size_of(view.dtype);
    std::memset(view.k, 0xff, bytes);
    std::memset(view.v, 0xff, bytes);
  }
  std::vector<int32_t> order(static_cast<size_t>(blocks[0]));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::minstd_rand(7));  // the same on all ranks
  for (int s = 0; s < options.sequences; ++s) {
    const auto begin = order.begin() + s * per_sequence;
    tables_.emplace_back(begin, begin + per_sequence);
  }
  positions_.assign(static_cast<size_t>(options.sequences), 0);
}

void ModelRank::make_batch(std::span<const Chunk> chunks) {
  tokens_.clear();
  rows_.clear();
  logit_tokens_.clear();
  std::vector<const int32_t*> tables;
  for (const Chunk& chunk : chunks) {
    const auto sequence = static_cast<size_t>(chunk.sequence);
    AttentionRow row;
    row.token_begin = static_cast<int32_t>(tokens_.size());
    row.count = static_cast<int32_t>(chunk.tokens.size());
    row.position = positions_[sequence];
    positions_[sequence] += row.count;
    rows_.push_back(row);
    tables.push_back(tables_[sequence].data());
    tokens_.insert(tokens_.end(), chunk.tokens.begin(), chunk.tokens.end());
    for (int i = chunk.logits; i > 0; --i) {
      logit_tokens_.push_back(static_cast<int32_t>(tokens_.size()) - i);
    }
  }
  batch_tables_.assign(groups_.windows.size(), tables);
}

const Logits& ModelRank::step(std::span<const Chunk> chunks) {
  world_.barrier();  // all have read the last step's logits
  make_batch(chunks);
  const DecoderBatch batch{tokens_, rows_, batch_tables_, logit_tokens_};
  const auto tokens = static_cast<int64_t>(tokens_.size());
  const int64_t vocab = layout_.stage(world_.rank()).shards.back().vocab.end();
  if (world_.rank() == 0) {
    shared_.vocab = vocab;
    shared_.values.assign(logit_tokens_.size() * static_cast<size_t>(vocab), 0.0f);
  }
  world_.barrier();
  decoder_->begin(batch, groups_, *cache_);
  if (edge_.has_previous()) edge_.recv(decoder_->hidden(tokens));
  decoder_->forward();
  if (edge_.has_next()) {
    edge_.send(decoder_->hidden(tokens));
  } else {
    const MatrixView logits = decoder_->logits(logit_tokens_);
    const int64_t begin = layout_.shard(world_.rank()).vocab.begin;
    for (int64_t row = 0; row < logits.rows; ++row) {
      std::copy_n(logits.f32(row), logits.cols, shared_.values.data() + row * vocab + begin);
    }
  }
  world_.barrier();
  return shared_;
}

void run_model(const WeightSource& source, const RunOptions& options,
               const std::function<void(ModelRank& model, int rank)>& body) {
  const int world = options.layout.world();
  const ParallelLayout layout = make_layout(options.layout, model_shape(source), world);
  Logits shared;
  run_ranks(world, [&](Communicator& communicator) {
    ModelRank model(source, layout, communicator, options, shared);
    body(model, communicator.rank());
  });
}

}  // namespace trireme
