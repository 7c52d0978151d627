// The collective table under mpirun, from the host and between delayed streams. Prints one verdict that all ranks agree
// on; a watchdog ends a hang.
#include <unistd.h>

#include <iostream>

#include "comm/world.h"
#include "tests/comm/collective_table.h"
#include "tests/comm/streamed_communicator.h"

int main() {
  ::alarm(120);
  shoal::CommOptions options;
  options.deadline = absl::Seconds(60);
  options.segment_bytes = 1024;
  auto world = shoal::MpiWorld(options);
  if (!world.ok()) {
    std::cerr << world.status() << "\n";
    shoal::AbortJob(7);
  }
  absl::Status status = shoal::RunCollectiveTable(**world, {0, 1, 2, 7, 127, 3001, 100003});
  if (status.ok()) {
    const auto device = shoal::CpuDevice({.streams = shoal::CpuDeviceOptions::Streams::kAsynchronous,
                                          .longest_delay = absl::Microseconds(200),
                                          .seed = 1});
    shoal::StreamedCommunicator streamed(**world, *device);
    status = shoal::RunCollectiveTable(streamed, {0, 1, 127, 3001});
  }
  if (!status.ok()) std::cerr << status << "\n";
  const auto failed =
      shoal::AllReduceValues(**world, {status.ok() ? 0.0 : 1.0}, shoal::ReduceOp::kSum, {.tag = "verdict"});
  if (!failed.ok() || (*failed)[0] > 0) shoal::AbortJob(1);
  if ((*world)->rank() == 0) std::cout << "collective table: " << (*world)->size() << " ranks pass\n";
  world->reset();
  shoal::FinalizeMpi();
  return 0;
}
