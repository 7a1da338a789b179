#include "tests/support/model_runner.h"

#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/cuda_module.h"
#include "tests/support/run_ranks.h"

namespace trireme {

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

namespace {

int stage_of(const LayoutSpec& layout, int rank) {
  int stage = 0;
  for (int end = layout.stages[0].tensor; rank >= end;) {
    end += layout.stages[static_cast<size_t>(++stage)].tensor;
  }
  return stage;
}

}  // namespace

RankLinks::RankLinks(Communicator& all, const LayoutSpec& layout, int gpu)
    : world(all), tp(all.split(stage_of(layout, all.rank()), "tp")) {
  if (gpu < 0) return;
  if (tp->size() > 1) device_tp = make_nccl_communicator(*tp, gpu, "tp");
  if (layout.stages.size() == 1) return;
  device_data = make_nccl_communicator(world, gpu, "data");
  stages = connect_stages(*device_data, stage_of(layout, world.rank()),
                          static_cast<int>(layout.stages.size()));
}

ModelRank::ModelRank(const WeightSource& source, const ParallelLayout& layout, RankLinks& links,
                     const RunOptions& options)
    : layout_(layout),
      links_(links),
      options_(options),
      edge_(links.device_data ? StageEdge(links.stages.incoming.get(), links.stages.outgoing.get(),
                                          layout, links.world.rank())
                              : StageEdge(links.world, layout)),
      backend_(options.gpu >= 0 ? make_cuda_backend(pool_, options.gpu, options.kv_dtype)
                                : make_cpu_backend(pool_, options.isa)),
      groups_(kv_groups(source.config())) {
  const int rank = links.world.rank();
  const ModelConfig& config = source.config();
  sums_ = make_tensor_sums(*links.tp, links.device_tp.get(), *backend_, config.hidden);
  decoder_ =
      std::make_unique<Decoder>(config, layout, rank, load_weights(source, layout, rank, *backend_),
                                *backend_, *sums_, options.max_tokens);
  flow_ = std::make_unique<ActivationFlow>(edge_, *backend_, options.max_tokens, config.hidden);
  const int per_sequence = (options.max_context + options.block_size - 1) / options.block_size;
  const std::vector<int32_t> blocks(groups_.windows.size(), per_sequence * options.sequences);
  cache_ = std::make_unique<KvCache>(config, groups_, layout.stage(rank).layers,
                                     static_cast<int>(layout.shard(rank).kv_heads.count),
                                     options.kv_dtype, options.block_size, blocks, *backend_);
  // Nothing may depend on KV that was never written: NaN would spread to every logit.
  for (int64_t i = layout.stage(rank).layers.begin; i < layout.stage(rank).layers.end(); ++i) {
    const KvLayerView& view = cache_->layer(static_cast<int>(i));
    const int64_t columns = int64_t{view.kv_heads} * view.block_size * view.head_dim;
    for (void* half : {view.k, view.v}) {
      backend_->fill_bytes({half, view.dtype, blocks[0], columns, columns}, 0xff);
    }
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
  make_batch(chunks);
  const DecoderBatch batch{tokens_, {}, rows_, batch_tables_, logit_tokens_};
  const auto tokens = static_cast<int64_t>(tokens_.size());
  Communicator& world = links_.world;
  const int64_t vocab = layout_.stage(world.rank()).shards.back().vocab.end();
  logits_.vocab = vocab;
  logits_.values.assign(logit_tokens_.size() * static_cast<size_t>(vocab), 0.0f);
  decoder_->begin(batch, groups_, *cache_);
  flow_->receive(decoder_->hidden(tokens));
  decoder_->forward();
  flow_->send(decoder_->hidden(tokens));
  if (!edge_.has_next()) {
    const MatrixView logits = backend_->read_back(decoder_->logits(logit_tokens_));
    const int64_t begin = layout_.shard(world.rank()).vocab.begin;
    for (int64_t row = 0; row < logits.rows; ++row) {
      std::copy_n(logits.f32(row), logits.cols, logits_.values.data() + row * vocab + begin);
    }
  }
  backend_->synchronize();
  world.all_reduce_sum(logits_.values);  // the others' parts are zeros here
  return logits_;
}

void run_model(const WeightSource& source, const RunOptions& options,
               const std::function<void(ModelRank& model, int rank)>& body) {
  const int world = options.layout.world();
  const ParallelLayout layout = make_layout(options.layout, model_shape(source), world);
  run_ranks(world, [&](Communicator& communicator) {
    RankLinks links(communicator, options.layout, -1);
    ModelRank model(source, layout, links, options);
    body(model, communicator.rank());
  });
}

}  // namespace trireme
