#include "runtime/logit_rows.h"

#include "base/error.h"

namespace trireme {

void HostLogitRows::attach(MatrixView logits, int64_t vocab_begin) {
  const auto count = static_cast<size_t>(logits.rows);
  if (rows_.size() < count) rows_.resize(count);
  for (size_t i = 0; i < count; ++i) {
    rows_[i].attach(logits.f32(static_cast<int64_t>(i)), {vocab_begin, logits.cols});
  }
}

void HostLogitRows::adjust(std::span<const LogitAdjustment> adjustments) {
  for (const LogitAdjustment& one : adjustments) rows_[static_cast<size_t>(one.row)].adjust(one);
}

void HostLogitRows::answer(std::span<LogitQuestion> questions) {
  for (LogitQuestion& question : questions) {
    const LogitRow& row = rows_[static_cast<size_t>(question.row)];
    if (question.within >= 0) fail(ErrorCode::kInternal, "sampler: parts of a bucket on the host");
    switch (question.kind) {
      case LogitQuestion::Kind::kBest: question.best = row.best(); break;
      case LogitQuestion::Kind::kMass:
        question.mass = row.mass(question.max, question.inverse_temperature);
        break;
      case LogitQuestion::Kind::kDraw: question.drawn = row.draw(question.draw); break;
      case LogitQuestion::Kind::kBucketMasses:
        row.bucket_masses(question.max, question.inverse_temperature, question.masses);
        break;
      case LogitQuestion::Kind::kBucket:
        row.bucket(question.which, question.max, question.inverse_temperature, *question.list);
        break;
      case LogitQuestion::Kind::kTop:
        question.left_out = row.top(question.count, *question.list);
        break;
      case LogitQuestion::Kind::kRaw: question.raw = row.raw(question.token); break;
    }
  }
}

}  // namespace trireme
