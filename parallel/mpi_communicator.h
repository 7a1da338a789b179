// The communicator over MPI, for host memory.
#pragma once

#include <mpi.h>

#include <memory>

#include "parallel/communicator.h"
#include "parallel/mpi_link.h"

namespace trireme {

// Collective over `comm`, which is duplicated. Ranks that share a host reduce through shared
// memory unless `shared_memory` is false.
std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm comm, const std::string& name,
                                                    std::shared_ptr<MpiProcess> process,
                                                    bool shared_memory = true);

}  // namespace trireme
