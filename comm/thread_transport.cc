#include "comm/thread_transport.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/obs/span.h"

namespace shoal {

namespace {

struct Posted {
  const char* data;
  int64_t bytes;
  std::shared_ptr<std::atomic<bool>> taken;
};

struct Mailbox {
  std::mutex mutex;
  std::deque<Posted> posted;
};

}  // namespace

class ThreadHub {
 public:
  ThreadHub(int ranks, int64_t segment_bytes, double link_bytes_per_second)
      : ranks_(ranks), segment_bytes_(segment_bytes), rate_(link_bytes_per_second), out_(ranks), in_(ranks) {}
  int ranks() const { return ranks_; }
  // What may move at once: of a link of a rate no more than it carries in 2 ms.
  int64_t segment_bytes() const {
    return rate_ > 0 ? std::min(segment_bytes_, std::max<int64_t>(1, static_cast<int64_t>(rate_ * 2e-3)))
                     : segment_bytes_;
  }
  // Whether `bytes` may go now from one rank to another; they then take their time of both links.
  bool Take(int from, int to, int64_t bytes) {
    if (rate_ <= 0) return true;
    const std::lock_guard<std::mutex> lock(links_mutex_);
    const double now = SteadySeconds();
    if (out_[from] > now || in_[to] > now) return false;
    // A link that was asked a little late makes up for it.
    constexpr double kLate = 1e-3;
    const double seconds = static_cast<double>(bytes) / rate_;
    for (double* free_at : {&out_[from], &in_[to]}) *free_at = std::max(*free_at, now - kLate) + seconds;
    return true;
  }

  std::shared_ptr<Mailbox> Box(int from, int to, int channel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto& box = boxes_[{from, to, channel}];
    if (box == nullptr) box = std::make_shared<Mailbox>();
    return box;
  }
  absl::Status health() const {
    if (!poisoned_.load(std::memory_order_acquire)) return absl::OkStatus();
    const std::lock_guard<std::mutex> lock(mutex_);
    return why_;
  }
  void Poison(const absl::Status& why) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!why_.ok()) return;
    why_ = why;
    poisoned_.store(true, std::memory_order_release);
  }

 private:
  const int ranks_;
  const int64_t segment_bytes_;
  mutable std::mutex mutex_;
  std::map<std::tuple<int, int, int>, std::shared_ptr<Mailbox>> boxes_;
  absl::Status why_;
  std::atomic<bool> poisoned_{false};
  const double rate_;
  std::mutex links_mutex_;
  std::vector<double> out_, in_;  // of each rank: when its link is free again
};

namespace {

class ThreadSend : public Transfer {
 public:
  ThreadSend(Mailbox& box, const void* data, int64_t bytes) : taken_(std::make_shared<std::atomic<bool>>(false)) {
    const std::lock_guard<std::mutex> lock(box.mutex);
    box.posted.push_back({static_cast<const char*>(data), bytes, taken_});
  }
  bool Poll() override { return taken_->load(std::memory_order_acquire); }

 private:
  std::shared_ptr<std::atomic<bool>> taken_;
};

class ThreadRecv : public Transfer {
 public:
  ThreadRecv(std::shared_ptr<ThreadHub> hub, std::shared_ptr<Mailbox> box, int sender, int to, void* data,
             int64_t bytes)
      : hub_(std::move(hub)),
        box_(std::move(box)),
        sender_(sender),
        to_(to),
        data_(static_cast<char*>(data)),
        bytes_(bytes) {}

  bool Poll() override {
    if (done_) return true;
    if (from_.data == nullptr && !from_.taken) {
      const std::lock_guard<std::mutex> lock(box_->mutex);
      if (box_->posted.empty()) return false;
      from_ = box_->posted.front();
      box_->posted.pop_front();
      if (from_.bytes != bytes_) {
        hub_->Poison(absl::InternalError(absl::StrCat("a message of ", from_.bytes, " bytes came where ", bytes_,
                                                      " were expected: ranks call different collectives")));
        return false;
      }
    }
    if (from_.bytes != bytes_) return false;
    // One segment per call, so that one long message does not hold up the others.
    const int64_t n = std::min(hub_->segment_bytes(), bytes_ - at_);
    if (!hub_->Take(sender_, to_, n)) return false;
    if (n > 0) std::memcpy(data_ + at_, from_.data + at_, static_cast<size_t>(n));
    at_ += n;
    done_ = at_ == bytes_;
    if (done_) from_.taken->store(true, std::memory_order_release);
    return done_;
  }

 private:
  std::shared_ptr<ThreadHub> hub_;
  std::shared_ptr<Mailbox> box_;
  int sender_, to_;
  char* data_;
  int64_t bytes_, at_ = 0;
  Posted from_ = {};
  bool done_ = false;
};

class ThreadTransport : public Transport {
 public:
  ThreadTransport(std::shared_ptr<ThreadHub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return hub_->ranks(); }
  std::unique_ptr<Transfer> Send(int to, int channel, const void* data, int64_t bytes) override {
    return std::make_unique<ThreadSend>(*hub_->Box(rank_, to, channel), data, bytes);
  }
  std::unique_ptr<Transfer> Recv(int from, int channel, void* data, int64_t bytes) override {
    return std::make_unique<ThreadRecv>(hub_, hub_->Box(from, rank_, channel), from, rank_, data, bytes);
  }
  absl::Status health() const override { return hub_->health(); }
  void Poison(const absl::Status& why) override { hub_->Poison(why); }

 private:
  std::shared_ptr<ThreadHub> hub_;
  int rank_;
};

}  // namespace

std::shared_ptr<ThreadHub> MakeThreadHub(int ranks, int64_t segment_bytes, double link_bytes_per_second) {
  return std::make_shared<ThreadHub>(ranks, segment_bytes, link_bytes_per_second);
}
std::unique_ptr<Transport> MakeThreadTransport(std::shared_ptr<ThreadHub> hub, int rank) {
  return std::make_unique<ThreadTransport>(std::move(hub), rank);
}

}  // namespace shoal
