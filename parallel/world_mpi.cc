// MpiEnvironment: the only place that starts and ends MPI.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <string>

#include "parallel/host_id.h"
#include "parallel/mpi_communicator.h"
#include "parallel/world.h"

namespace trireme {
namespace {

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != 0;
}

// Open MPI's and MPICH's mpirun, and srun with PMIx or PMI, tell their processes so.
bool started_by_launcher() {
  const char* forced = std::getenv("TRIREME_MPI");
  if (forced != nullptr && *forced != 0) return std::string(forced) != "0";
  for (const char* variable : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_FD"}) {
    if (is_set(variable)) return true;
  }
  // A step of several tasks without any PMI: each would take itself for the whole world.
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (is_set("SLURM_STEP_ID") && tasks != nullptr && std::atoi(tasks) > 1) {
    fail(ErrorCode::kUnavailable,
         "srun started {} tasks without telling them of each other: use srun --mpi=pmix", tasks);
  }
  return false;
}

// Whether another process of this user may read this one's memory. Then Open MPI's receivers fetch
// large messages by themselves, while the sender computes; where a container forbids it, Open MPI
// would find out in the middle of a message.
bool peers_may_read_memory() {
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);  // as Open MPI does
  const uint64_t secret = 0x7472697265;
  uint64_t copy = 0;
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    iovec to{&copy, sizeof copy}, from{const_cast<uint64_t*>(&secret), sizeof secret};
    const bool read = process_vm_readv(parent, &to, 1, &from, 1, 0) == sizeof copy;
    _exit(read && copy == secret ? 0 : 1);
  }
  int status = 1;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Whether the ranks of this host are more than the cores they may run on, all together.
bool is_crowded(MPI_Comm local, int local_size) {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  if (sched_getaffinity(0, sizeof mine, &mine) != 0) return local_size > usable_cores();
  cpu_set_t all = mine;
  check_mpi(MPI_Allreduce(&mine, &all, sizeof mine, MPI_BYTE, MPI_BOR, local), "world",
            "cores per host", 0, sizeof mine);
  return local_size > CPU_COUNT(&all);
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  host_ = name;
  if (!started_by_launcher()) return;
  if (!peers_may_read_memory()) setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) {
    fail(ErrorCode::kUnavailable, "MPI does not start on {}", host_);
  }
  active_ = true;
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_SERIALIZED) {
    MPI_Finalize();
    active_ = false;
    fail(ErrorCode::kUnavailable,
         "this MPI lets only the main thread call it (it has no "
         "MPI_THREAD_SERIALIZED)");
  }
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  find_nodes();
}

// Nodes are what MPI says shares memory, and what the environment splits of that.
void MpiEnvironment::find_nodes() {
  MPI_Comm host = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host),
            "world", "split by host", rank_, 0);
  MPI_Comm_size(host, &local_size_);
  process_ = std::make_shared<MpiProcess>(is_crowded(host, local_size_));
  const char* name = std::getenv(kNodeVariable);
  const auto color = static_cast<int>(std::hash<std::string>{}(name == nullptr ? "" : name) >> 33);
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(host, color, rank_, &node), "world", "split by node", rank_, 0);
  MPI_Comm_rank(node, &local_rank_);
  int first = rank_;
  check_mpi(MPI_Bcast(&first, 1, MPI_INT, 0, node), "world", "rank of a node", rank_, sizeof(int));
  MPI_Comm ordered = MPI_COMM_NULL;
  // A node's ranks follow each other, in their own order.
  check_mpi(MPI_Comm_split(MPI_COMM_WORLD, 0, first, &ordered), "world", "order by node", rank_, 0);
  MPI_Comm_rank(ordered, &rank_);
  node_ = rank_;
  check_mpi(MPI_Bcast(&node_, 1, MPI_INT, 0, node), "world", "rank of a node", rank_, sizeof(int));
  MPI_Comm_set_errhandler(ordered, MPI_ERRORS_RETURN);
  process_->set_ranks(ordered);
  MPI_Comm_free(&node);
  MPI_Comm_free(&host);
}

MpiEnvironment::~MpiEnvironment() {
  if (!active_) return;
  if (process_->aborted()) abort(1);
  MPI_Comm ranks = process_->ranks();
  MPI_Comm_free(&ranks);
  MPI_Finalize();
}

std::unique_ptr<Communicator> MpiEnvironment::make_control() const {
  if (!active_ || size_ == 1) return make_single_communicator("control");
  return make_mpi_communicator(process_->ranks(), "control", process_);
}

void MpiEnvironment::abort(int exit_code) {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::_Exit(exit_code);
}

}  // namespace trireme
