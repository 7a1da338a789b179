#include "parallel/balance.h"

#include <algorithm>
#include <limits>
#include <string>

#include "base/error.h"

namespace trireme {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

void check_layers(const LayoutSpec& spec, int layers) {
  int least = 0;
  bool open = false;
  std::string wanted;
  for (const StageSpec& stage : spec.stages) {
    least += std::max(stage.layers, 1);
    open = open || stage.layers == 0;
    if (!wanted.empty()) wanted += '+';
    wanted += stage.layers ? std::to_string(stage.layers) : "?";
  }
  if (least <= layers && (least == layers || open)) return;
  fail(ErrorCode::kInvalidArgument, "layout: stage layers {} do not make up the model's {} layers",
       wanted, layers);
}

// Stages i of a split of the model's layers, cut one after the other.
class Balance {
 public:
  Balance(const LayoutSpec& spec, const StageCosts& costs)
      : spec_(spec), costs_(costs), sums_(1, 0.0), layers_(static_cast<int>(costs.layers.size())) {
    for (const double layer : costs.layers) sums_.push_back(sums_.back() + layer);
  }

  std::vector<int> split() const {
    const double most = least_maximum(maximum(dealt()));
    return evenest(most * (1 + 1e-9));
  }

 private:
  size_t stages() const { return spec_.stages.size(); }

  // Of stage i with the layers [begin, end).
  double cost(size_t i, int begin, int end) const {
    double sum = sums_[static_cast<size_t>(end)] - sums_[static_cast<size_t>(begin)];
    if (i == 0) sum += costs_.first;
    if (i + 1 == stages()) sum += costs_.last;
    return sum / spec_.stages[i].tensor;
  }
  double maximum(const std::vector<int>& split) const {
    double most = 0;
    int begin = 0;
    for (size_t i = 0; i < split.size(); ++i) {
      most = std::max(most, cost(i, begin, begin + split[i]));
      begin += split[i];
    }
    return most;
  }

  // A good split, as if all layers were alike: one layer at a time to the stage that is cheapest
  // with one more. Where they are, no other has a faster slowest stage.
  std::vector<int> dealt() const {
    const double layer = sums_.back() / layers_;
    std::vector<int> split;
    std::vector<size_t> open;
    int left = layers_;
    for (size_t i = 0; i < stages(); ++i) {
      if (spec_.stages[i].layers == 0) open.push_back(i);
      split.push_back(std::max(spec_.stages[i].layers, 1));
      left -= split.back();
    }
    const auto with_one_more = [&](size_t i) {
      const double sum = (split[i] + 1) * layer + (i == 0 ? costs_.first : 0) +
                         (i + 1 == stages() ? costs_.last : 0);
      return sum / spec_.stages[i].tensor;
    };
    for (; left > 0; --left) {
      ++split[*std::min_element(open.begin(), open.end(), [&](size_t a, size_t b) {
        return with_one_more(a) < with_one_more(b);
      })];
    }
    return split;
  }

  // For every way to cut the first stages so that they hold `end` layers: the least of
  // join(cost so far, cost of the stage), stages above `limit` left out; `from` (optional) says
  // where the last of these stages begins.
  template <typename Join>
  std::vector<double> extend(size_t i, const std::vector<double>& so_far, double limit, Join join,
                             std::vector<int>* from) const {
    std::vector<double> best(static_cast<size_t>(layers_) + 1, kNever);
    if (from != nullptr) from->assign(best.size(), -1);
    const int fixed = spec_.stages[i].layers;
    for (int begin = 0; begin < layers_; ++begin) {
      const double before = so_far[static_cast<size_t>(begin)];
      if (before == kNever) continue;
      const int last = fixed > 0 ? std::min(begin + fixed, layers_) : layers_;
      for (int end = begin + std::max(fixed, 1); end <= last; ++end) {
        const double here = cost(i, begin, end);
        if (here > limit) break;
        const double joined = join(before, here);
        if (joined >= best[static_cast<size_t>(end)]) continue;
        best[static_cast<size_t>(end)] = joined;
        if (from != nullptr) (*from)[static_cast<size_t>(end)] = begin;
      }
    }
    return best;
  }
  std::vector<double> at_the_start() const {
    std::vector<double> start(static_cast<size_t>(layers_) + 1, kNever);
    start[0] = 0;
    return start;
  }

  double least_maximum(double limit) const {
    std::vector<double> most = at_the_start();
    for (size_t i = 0; i < stages(); ++i) {
      most = extend(
          i, most, limit, [](double a, double b) { return std::max(a, b); }, nullptr);
    }
    return std::min(most.back(), limit);
  }

  std::vector<int> evenest(double limit) const {
    std::vector<double> squares = at_the_start();
    std::vector<std::vector<int>> from(stages());
    for (size_t i = 0; i < stages(); ++i) {
      squares = extend(
          i, squares, limit, [](double a, double b) { return a + b * b; }, &from[i]);
    }
    std::vector<int> split(stages());
    int end = layers_;
    for (size_t i = stages(); i-- > 0;) {
      const int begin = from[i][static_cast<size_t>(end)];
      split[i] = end - begin;
      end = begin;
    }
    return split;
  }

  const LayoutSpec& spec_;
  const StageCosts& costs_;
  std::vector<double> sums_;  // of the first layers
  int layers_;
};

}  // namespace

StageCosts costs_of(const ModelShape& model) {
  StageCosts costs = model.costs;
  if (!costs.layers.empty()) return costs;
  const double heads = 2.0 * model.head_dim * (model.q_heads + model.kv_heads);
  const double ffn =
      model.experts > 0 ? 1.0 * model.experts_per_token * model.expert_ffn : model.ffn;
  costs.layers.assign(static_cast<size_t>(model.layers), heads + 3.0 * ffn);
  costs.last = static_cast<double>(model.vocab);
  return costs;
}

std::vector<int> balance_stages(const LayoutSpec& spec, const ModelShape& model) {
  check_layers(spec, model.layers);
  const StageCosts costs = costs_of(model);
  if (costs.layers.size() != static_cast<size_t>(model.layers)) {
    fail(ErrorCode::kInternal, "layout: costs of {} layers, the model has {}", costs.layers.size(),
         model.layers);
  }
  return Balance(spec, costs).split();
}

}  // namespace trireme
