#include "comm/mpi_transport.h"

#include <mpi.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"

namespace shoal {
namespace {

// A message as a window of segments under way at once.
class MpiTransfer : public Transfer {
 public:
  enum class Way { kSend, kRecv };
  MpiTransfer(Way way, MPI_Comm comm, int peer, int tag, char* data, int64_t bytes, int64_t segment, Transport& owner)
      : way_(way), comm_(comm), peer_(peer), tag_(tag), data_(data), bytes_(bytes), segment_(segment), owner_(owner) {
    if (bytes_ == 0) Post(0);  // an empty message still says that the peer is there
    Advance();
  }

  bool Poll() override {
    while (!open_.empty()) {
      int done = 0;
      const int code = MPI_Test(&open_.front(), &done, MPI_STATUS_IGNORE);
      if (code != MPI_SUCCESS) {
        char text[MPI_MAX_ERROR_STRING];
        int length = 0;
        MPI_Error_string(code, text, &length);
        owner_.Poison(absl::UnavailableError(
            absl::StrCat("MPI, message with rank ", peer_, ": ", std::string(text, static_cast<size_t>(length)))));
        return false;
      }
      if (!done) return false;
      open_.pop_front();
      Advance();
    }
    return at_ == bytes_;
  }

 private:
  static constexpr size_t kWindow = 4;
  void Post(int64_t n) {
    open_.emplace_back();
    char* from = data_ + at_;
    if (way_ == Way::kSend)
      MPI_Isend(from, static_cast<int>(n), MPI_BYTE, peer_, tag_, comm_, &open_.back());
    else
      MPI_Irecv(from, static_cast<int>(n), MPI_BYTE, peer_, tag_, comm_, &open_.back());
    at_ += n;
  }
  void Advance() {
    while (open_.size() < kWindow && at_ < bytes_) Post(std::min(segment_, bytes_ - at_));
  }
  Way way_;
  MPI_Comm comm_;
  int peer_, tag_;
  char* data_;
  int64_t bytes_, segment_, at_ = 0;
  Transport& owner_;
  std::deque<MPI_Request> open_;
};

class MpiTransport : public Transport {
 public:
  explicit MpiTransport(int64_t segment) : segment_(segment) {
    MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::unique_ptr<Transfer> Send(int to, int channel, const void* data, int64_t bytes) override {
    return std::make_unique<MpiTransfer>(MpiTransfer::Way::kSend, comm_, to, channel,
                                         static_cast<char*>(const_cast<void*>(data)), bytes, segment_, *this);
  }
  std::unique_ptr<Transfer> Recv(int from, int channel, void* data, int64_t bytes) override {
    return std::make_unique<MpiTransfer>(MpiTransfer::Way::kRecv, comm_, from, channel, static_cast<char*>(data), bytes,
                                         segment_, *this);
  }
  absl::Status health() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return why_;
  }
  void Poison(const absl::Status& why) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (why_.ok()) why_ = why;
  }

 private:
  int64_t segment_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  mutable std::mutex mutex_;
  absl::Status why_;
};

}  // namespace

std::unique_ptr<Transport> MakeMpiTransport(int64_t segment_bytes) {
  return std::make_unique<MpiTransport>(segment_bytes);
}

}  // namespace shoal
