#include "parallel/shard.h"

#include <algorithm>

#include "base/error.h"

namespace trireme {
namespace {

// The i-th of `parts` parts of `count` things; the first parts are the larger ones.
Part even_part(int64_t count, int64_t parts, int64_t i) {
  const int64_t base = count / parts, extra = count % parts;
  return {i * base + std::min(i, extra), base + (i < extra ? 1 : 0)};
}

// What experts can be cut into at most.
int64_t expert_parts(const ModelShape& model) {
  return model.experts * (model.expert_ffn / model.expert_ffn_multiple);
}

void cut_heads(const ModelShape& model, std::vector<TensorShard>& shards) {
  const int64_t tensor = static_cast<int64_t>(shards.size());
  const int64_t group = model.q_heads / model.kv_heads;
  if (tensor <= model.kv_heads) {
    for (int64_t rank = 0; rank < tensor; ++rank) {
      TensorShard& shard = shards[static_cast<size_t>(rank)];
      shard.kv_heads = even_part(model.kv_heads, tensor, rank);
      shard.q_heads = {shard.kv_heads.begin * group, shard.kv_heads.count * group};
    }
    return;
  }
  for (int64_t head = 0; head < model.kv_heads; ++head) {
    const Part ranks = even_part(tensor, model.kv_heads, head);
    for (int64_t i = 0; i < ranks.count; ++i) {
      TensorShard& shard = shards[static_cast<size_t>(ranks.begin + i)];
      const Part q = even_part(group, ranks.count, i);
      shard.q_heads = {head * group + q.begin, q.count};
      shard.kv_heads = {head, 1};
      shard.kv_owner = i == 0;
    }
  }
}

// Deals `units` out so that the largest attention + feed-forward cost of a rank is the least: fills
// all ranks up to one level, at least one unit each, and gives the few left over to the cheapest.
std::vector<int64_t> level_units(int64_t units, double unit_cost,
                                 const std::vector<double>& attention) {
  const auto filled = [&](double level, size_t rank) {
    return std::max<int64_t>(1, static_cast<int64_t>((level - attention[rank]) / unit_cost));
  };
  const auto total = [&](double level) {
    int64_t sum = 0;
    for (size_t rank = 0; rank < attention.size(); ++rank) sum += filled(level, rank);
    return sum;
  };
  double low = 0;  // total(low) == ranks <= units
  double high = *std::max_element(attention.begin(), attention.end()) +
                unit_cost * static_cast<double>(units + 1);
  for (int step = 0; step < 100; ++step) {
    const double middle = low + (high - low) / 2;
    (total(middle) <= units ? low : high) = middle;
  }
  std::vector<int64_t> counts(attention.size());
  int64_t left = units;
  for (size_t rank = 0; rank < counts.size(); ++rank) left -= counts[rank] = filled(low, rank);
  for (; left > 0; --left) {
    size_t cheapest = 0;
    const auto cost = [&](size_t rank) {
      return attention[rank] + unit_cost * static_cast<double>(counts[rank]);
    };
    for (size_t rank = 1; rank < counts.size(); ++rank) {
      if (cost(rank) < cost(cheapest)) cheapest = rank;
    }
    ++counts[cheapest];
  }
  return counts;
}

void cut_ffn(const ModelShape& model, std::vector<TensorShard>& shards) {
  if (model.ffn == 0) return;
  // Parameters per row of `hidden`: q and o rows, k and v rows; gate, up and down.
  std::vector<double> attention;
  for (const TensorShard& shard : shards) {
    attention.push_back(2.0 * model.head_dim *
                        static_cast<double>(shard.q_heads.count + shard.kv_heads.count));
  }
  const auto counts = level_units(model.ffn / model.ffn_multiple,
                                  3.0 * static_cast<double>(model.ffn_multiple), attention);
  int64_t begin = 0;
  for (size_t rank = 0; rank < shards.size(); ++rank) {
    shards[rank].ffn = {begin, counts[rank] * model.ffn_multiple};
    begin = shards[rank].ffn.end();
  }
}

void cut_experts(const ModelShape& model, std::vector<TensorShard>& shards) {
  if (model.experts == 0) return;
  const int64_t tensor = static_cast<int64_t>(shards.size());
  if (tensor <= model.experts) {
    for (int64_t rank = 0; rank < tensor; ++rank) {
      TensorShard& shard = shards[static_cast<size_t>(rank)];
      shard.experts = even_part(model.experts, tensor, rank);
      shard.expert_ffn = {0, model.expert_ffn};
    }
    return;
  }
  const int64_t multiple = model.expert_ffn_multiple;
  for (int64_t expert = 0; expert < model.experts; ++expert) {
    const Part ranks = even_part(tensor, model.experts, expert);
    for (int64_t i = 0; i < ranks.count; ++i) {
      const Part units = even_part(model.expert_ffn / multiple, ranks.count, i);
      TensorShard& shard = shards[static_cast<size_t>(ranks.begin + i)];
      shard.experts = {expert, 1};
      shard.expert_ffn = {units.begin * multiple, units.count * multiple};
    }
  }
}

void cut_vocab(const ModelShape& model, std::vector<TensorShard>& shards) {
  const int64_t tensor = static_cast<int64_t>(shards.size());
  int64_t grain = 64;  // rows of the head; smaller where a vocabulary is tiny
  while (grain > 1 && model.vocab / grain < 4 * tensor) grain /= 2;
  const int64_t units = (model.vocab + grain - 1) / grain;
  for (int64_t rank = 0; rank < tensor; ++rank) {
    const Part part = even_part(units, tensor, rank);
    const int64_t begin = part.begin * grain;
    shards[static_cast<size_t>(rank)].vocab = {begin,
                                               std::min(part.end() * grain, model.vocab) - begin};
  }
}

}  // namespace

void check_model_shape(const ModelShape& model) {
  const auto positive = [](const char* field, int64_t value) {
    if (value >= 1 && value <= (int64_t{1} << 40)) return;
    fail(ErrorCode::kInvalidArgument, "model: {} is {}", field, value);
  };
  positive("layers", model.layers);
  positive("hidden", model.hidden);
  positive("q_heads", model.q_heads);
  positive("kv_heads", model.kv_heads);
  positive("head_dim", model.head_dim);
  if (model.experts == 0 || model.ffn != 0) positive("ffn", model.ffn);
  positive("vocab", model.vocab);
  positive("ffn_multiple", model.ffn_multiple);
  if (model.experts != 0) {
    positive("experts", model.experts);
    positive("expert_ffn", model.expert_ffn);
    positive("expert_ffn_multiple", model.expert_ffn_multiple);
  }
  if (model.q_heads % model.kv_heads != 0) {
    fail(ErrorCode::kInvalidArgument, "model: {} query heads are no multiple of {} KV heads",
         model.q_heads, model.kv_heads);
  }
  const auto whole = [](int64_t width, int64_t multiple) {
    if (width % multiple == 0) return;
    fail(ErrorCode::kInvalidArgument,
         "model: the feed-forward size {} is no multiple of {}, at which its weights can be cut",
         width, multiple);
  };
  whole(model.ffn, model.ffn_multiple);
  whole(model.expert_ffn, model.expert_ffn_multiple);
}

int max_tensor(const ModelShape& model) {
  int64_t most = std::min<int64_t>(model.q_heads, model.vocab);
  if (model.ffn > 0) most = std::min(most, model.ffn / model.ffn_multiple);
  if (model.experts > 0) most = std::min(most, expert_parts(model));
  return static_cast<int>(most);
}

std::vector<TensorShard> cut_stage(const ModelShape& model, int tensor) {
  const auto at_most = [&](const char* what, int64_t most) {
    if (tensor <= most) return;
    fail(ErrorCode::kInvalidArgument, "layout: tensor={} is more than the model's {} {}", tensor,
         most, what);
  };
  at_most("query heads", model.q_heads);
  if (model.ffn > 0) at_most("feed-forward blocks", model.ffn / model.ffn_multiple);
  if (model.experts > 0) at_most("blocks of experts", expert_parts(model));
  at_most("vocabulary entries", model.vocab);
  std::vector<TensorShard> shards(static_cast<size_t>(tensor));
  cut_heads(model, shards);
  cut_ffn(model, shards);
  cut_experts(model, shards);
  cut_vocab(model, shards);
  return shards;
}

}  // namespace trireme
