// trireme: one program, one subcommand for each thing a user does.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <string>

#include "base/error.h"
#include "launch/command.h"

#ifndef TRIREME_VERSION
#define TRIREME_VERSION "0"
#endif

namespace {

// Ranks are also ended by their launcher, because of another's error: that one has told it.
volatile std::sig_atomic_t is_rank = 0;

// Only what may be called in a signal handler.
extern "C" void end_interrupted(int) {
  // A launcher that has lost another rank ends this one too: its watchdog may be about to tell.
  if (is_rank != 0 && trireme::Watchdog::note_ending()) {
    const timespec last_words{0, 1'000'000 * trireme::Watchdog::kLastWords.count()};
    nanosleep(&last_words, nullptr);
  }
  constexpr char kMessage[] = "trireme: interrupted\n";
  if (is_rank == 0) {
    [[maybe_unused]] const auto written = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  }
  _exit(1);
}

// The program ends with an exit code, never by a signal. serve and chat go on from here.
void set_signals() {
  for (const char* variable : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (std::getenv(variable) != nullptr) is_rank = 1;
  }
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe or socket is an error
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    // nohup and shells' background jobs ignore some: so it stays.
    if (std::signal(number, end_interrupted) == SIG_IGN) std::signal(number, SIG_IGN);
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace trireme;
  set_signals();

  CLI::App app{
      "Trireme serves large language models across MPI ranks.\n"
      "Start a server with: mpirun -n 4 trireme serve --model PATH"};
  app.footer(
      "Results go to stdout (with --json as one object), everything else to stderr. Exit codes:\n"
      "0 done, 2 usage or bad input, 3 a rank of several was lost or stuck (stderr names it), 1\n"
      "anything else. trireme SUBCOMMAND --help says more.");
  app.name("trireme");
  app.set_version_flag("--version", TRIREME_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  app.get_formatter()->column_width(34);

  CommandContext context;
  context.argc = &argc;
  context.argv = &argv;
  auto* level = app.add_option("--log-level", context.log_level, "What goes to stderr")
                    ->check(CLI::IsMember({"debug", "info", "warn", "error", "off"}))
                    ->capture_default_str();

  CommandBody body;
  add_serve(app, body);
  add_generate(app, body);
  add_chat(app, body);
  add_score(app, body);
  add_inspect(app, body);
  add_tokenize(app, body);
  add_bench(app, body);
  add_trace(app, body);

  // CLI11 would only say that a subcommand is required.
  const bool named = argc > 1 && argv[1][0] != '-';
  const auto all = app.get_subcommands([](CLI::App*) { return true; });
  if (named && std::none_of(all.begin(), all.end(),
                            [&](CLI::App* command) { return command->check_name(argv[1]); })) {
    if (launched_as_root_rank()) {
      std::fprintf(stderr, "trireme: unknown subcommand '%s'\nRun trireme --help for usage.\n",
                   argv[1]);
    }
    return 2;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& done) {  // --help, --version
    if (launched_as_root_rank()) app.exit(done);
    return 0;
  } catch (const Error& error) {  // from a flag's own reading of its value
    return report_errors([&]() -> int { throw error; });
  } catch (const CLI::ParseError& error) {
    if (launched_as_root_rank()) {
      std::fprintf(stderr, "trireme: %s\nRun trireme %s--help for usage.\n", error.what(),
                   named ? (std::string(argv[1]) + " ").c_str() : "");
    }
    return 2;
  }
  context.log_level_given = level->count() > 0;
  const int code = report_errors([&] { return body(context); });
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "trireme: the result could not be written to stdout\n");
    return code == 0 ? 1 : code;
  }
  return code;
}
