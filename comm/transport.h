// Transport: ordered, non-blocking byte messages between the ranks of a world. What collectives are written over.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"

namespace shoal {

// A message under way. Its memory belongs to it until Poll says true.
class Transfer {
 public:
  virtual ~Transfer() = default;
  virtual bool Poll() = 0;  // moves bytes if it can; true once all are through
};

// Used by one thread of a rank, its progress engine. Messages of one (sender, receiver, channel) arrive in order.
class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::unique_ptr<Transfer> Send(int to, int channel, const void* data, int64_t bytes) = 0;
  virtual std::unique_ptr<Transfer> Recv(int from, int channel, void* data, int64_t bytes) = 0;
  // First error of the world as far as this rank knows; OK while healthy.
  virtual absl::Status health() const = 0;
  // Makes health() fail here, and on every rank that can be told.
  virtual void Poison(const absl::Status& why) = 0;
};

}  // namespace shoal
