#include "comm/clock.h"

#include <limits>

#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {

absl::StatusOr<double> ClockOffset(Communicator& world) {
  constexpr int kRounds = 8;
  const CallOptions options{.tag = "clock"};
  const Tensor message = Tensor::Zeros({1}, DType::kF64);
  double& value = *message.data<double>();
  double offset = 0;
  // Rank 0 answers one rank after the other; the others see their own round trips only.
  for (int peer = 1; peer < world.size(); ++peer) {
    double shortest = std::numeric_limits<double>::infinity();
    for (int round = 0; round < kRounds; ++round) {
      if (world.rank() == 0) {
        SHOAL_RETURN_IF_ERROR(world.Recv(message, peer, options)->Wait());
        value = SteadySeconds();
        SHOAL_RETURN_IF_ERROR(world.Send(message, peer, options)->Wait());
      } else if (world.rank() == peer) {
        const double sent = SteadySeconds();
        SHOAL_RETURN_IF_ERROR(world.Send(message, 0, options)->Wait());
        SHOAL_RETURN_IF_ERROR(world.Recv(message, 0, options)->Wait());
        const double trip = SteadySeconds() - sent;
        if (trip < shortest) {
          shortest = trip;
          offset = value - (sent + trip / 2);
        }
      }
    }
  }
  return offset;
}

}  // namespace shoal
