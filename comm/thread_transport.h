// Ranks that are threads of one process: a message is one copy from the sender's memory to the receiver's.
#pragma once

#include <memory>

#include "comm/transport.h"

namespace shoal {

class ThreadHub;  // what the ranks of one world share
// link_bytes_per_second > 0: every rank has a link of that rate in each direction, over which its messages go.
std::shared_ptr<ThreadHub> MakeThreadHub(int ranks, int64_t segment_bytes, double link_bytes_per_second = 0);
std::unique_ptr<Transport> MakeThreadTransport(std::shared_ptr<ThreadHub> hub, int rank);

}  // namespace shoal
