// Messages over MPI: MPI_Isend and MPI_Irecv in segments. Channels are tags of one duplicated communicator.
#pragma once

#include <memory>

#include "comm/transport.h"

namespace shoal {

// MPI is initialised (MPI_THREAD_MULTIPLE). Collective over MPI_COMM_WORLD.
std::unique_ptr<Transport> MakeMpiTransport(int64_t segment_bytes);

}  // namespace shoal
