// What the Get calls tell: every field of their messages, from the place that it belongs to.
#include "runtime/coordinator_messages.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

namespace trireme::test {
namespace {

// Each field is set, but those that the caller fills in; one that is added later is missed here.
void expect_every_field(const google::protobuf::Message& message,
                        const std::set<std::string>& others = {}) {
  const auto* reflection = message.GetReflection();
  const auto* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const auto* field = type->field(i);
    const bool set = field->is_repeated() ? reflection->FieldSize(message, field) > 0
                                          : reflection->HasField(message, field);
    EXPECT_EQ(set, !others.contains(std::string(field->name()))) << field->full_name();
  }
}

ServerDescription description() {
  ServerDescription description;
  description.version = "1.2.3";
  description.layout = "tensor=2,pipeline=2";
  description.ranks = 4;
  description.backend = "cpu avx2";
  description.profile = "latency";
  description.scheduler.max_queue = 11;
  description.scheduler.max_running = 12;
  description.scheduler.token_budget = 13;
  description.pool.block_size = 8;
  description.pool.blocks = {100, 40};  // the smaller group is what holds sequences up
  ModelConfig& model = description.model;
  model.name = "letters";
  model.architecture = "llama";
  model.layers.resize(3);
  model.hidden = 64;
  model.q_heads = 9;
  model.kv_heads = 2;
  model.head_dim = 16;
  description.chat_template = "{{ messages }}";
  return description;
}

TEST(Messages, ServerInfoTellsAll) {
  v1::ServerInfo info;
  to_message(description(), info);
  expect_every_field(info, {"uptime_ms"});
  EXPECT_EQ(info.version(), "1.2.3");
  EXPECT_EQ(info.layout(), "tensor=2,pipeline=2");
  EXPECT_EQ(info.ranks(), 4);
  EXPECT_EQ(info.backend(), "cpu avx2");
  EXPECT_EQ(info.profile(), "latency");
  EXPECT_EQ(info.max_queue(), 11);
  EXPECT_EQ(info.max_running(), 12);
  EXPECT_EQ(info.token_budget(), 13);
  EXPECT_EQ(info.block_size(), 8);
  EXPECT_EQ(info.kv_token_capacity(), 320);
}

TEST(Messages, ModelInfoTellsAll) {
  FrontendConfig frontend;
  frontend.vocab = 515;
  frontend.max_context = 2000;
  frontend.eos_ids = {2, 7};
  v1::ModelInfo info;
  to_message(description(), frontend, true, info);
  expect_every_field(info);
  EXPECT_EQ(info.name(), "letters");
  EXPECT_EQ(info.architecture(), "llama");
  EXPECT_EQ(info.layers(), 3);
  EXPECT_EQ(info.hidden(), 64);
  EXPECT_EQ(info.q_heads(), 9);
  EXPECT_EQ(info.kv_heads(), 2);
  EXPECT_EQ(info.head_dim(), 16);
  EXPECT_EQ(info.vocab(), 515);
  EXPECT_EQ(info.max_context(), 2000);
  EXPECT_EQ(info.eos_ids_size(), 2);
  EXPECT_EQ(info.eos_ids(1), 7);
  EXPECT_EQ(info.chat_template(), "{{ messages }}");
}

TEST(Messages, LoadTellsAll) {
  EngineStats stats;
  stats.scheduler.waiting = 1;
  stats.scheduler.running = 2;
  stats.scheduler.kv.blocks = 3;
  stats.scheduler.kv.used = 4;
  stats.scheduler.kv.cached = 5;
  stats.scheduler.kv_tokens_used = 6;
  stats.scheduler.kv_tokens_allocated = 7;
  stats.scheduler.steps = 8;
  stats.generated_tokens = 9;
  stats.prompt_tokens = 10;
  stats.scheduler.kv.hit_tokens = 11;
  stats.scheduler.preemptions = 12;
  v1::Load load;
  to_message(stats, 13, load);
  expect_every_field(load);
  EXPECT_EQ(load.waiting(), 1);
  EXPECT_EQ(load.running(), 2);
  EXPECT_EQ(load.kv_blocks(), 3);
  EXPECT_EQ(load.kv_blocks_used(), 4);
  EXPECT_EQ(load.kv_blocks_cached(), 5);
  EXPECT_EQ(load.kv_tokens_used(), 6);
  EXPECT_EQ(load.kv_tokens_allocated(), 7);
  EXPECT_EQ(load.steps(), 8u);
  EXPECT_EQ(load.generated_tokens(), 9u);
  EXPECT_EQ(load.prompt_tokens(), 10u);
  EXPECT_EQ(load.cached_tokens(), 11u);
  EXPECT_EQ(load.preemptions(), 12u);
  EXPECT_EQ(load.requests(), 13);
}

}  // namespace
}  // namespace trireme::test
