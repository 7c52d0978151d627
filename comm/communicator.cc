#include "comm/communicator.h"

#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace shoal {

WorkPtr Communicator::ReduceScatter(const Tensor& in, const Tensor& out, ReduceOp op, CallOptions options) {
  return ReduceScatterV(in, std::vector<int64_t>(size(), out.size()), out, op, options);
}
WorkPtr Communicator::AllGather(const Tensor& in, const Tensor& out, CallOptions options) {
  return AllGatherV(in, std::vector<int64_t>(size(), in.size()), out, options);
}
WorkPtr Communicator::AllToAll(const Tensor& in, const Tensor& out, CallOptions options) {
  const std::vector<int64_t> counts(size(), in.size() / size());
  return AllToAllV(in, counts, out, counts, options);
}

absl::StatusOr<std::vector<double>> AllReduceValues(Communicator& comm, std::vector<double> values, ReduceOp op,
                                                    CallOptions options) {
  const Tensor x = Tensor::Borrow(values.data(), {static_cast<int64_t>(values.size())}, DType::kF64);
  SHOAL_RETURN_IF_ERROR(comm.AllReduce(x, op, options)->Wait());
  return values;
}

absl::StatusOr<std::string> BroadcastString(Communicator& comm, std::string value, int root, CallOptions options) {
  const Tensor size = Tensor::Zeros({1}, DType::kI64);
  size.data<int64_t>()[0] = static_cast<int64_t>(value.size());
  SHOAL_RETURN_IF_ERROR(comm.Broadcast(size, root, options)->Wait());
  const Tensor bytes = Tensor::Zeros({size.data<int64_t>()[0]}, DType::kU8);
  if (comm.rank() == root) std::memcpy(bytes.raw(), value.data(), value.size());
  SHOAL_RETURN_IF_ERROR(comm.Broadcast(bytes, root, options)->Wait());
  return std::string(static_cast<const char*>(bytes.raw()), static_cast<size_t>(bytes.size()));
}

absl::StatusOr<std::vector<std::string>> AllGatherStrings(Communicator& comm, const std::string& value,
                                                          CallOptions options) {
  const Tensor size = Tensor::Zeros({1}, DType::kI64), sizes = Tensor::Zeros({comm.size()}, DType::kI64);
  size.data<int64_t>()[0] = static_cast<int64_t>(value.size());
  SHOAL_RETURN_IF_ERROR(comm.AllGather(size, sizes, options)->Wait());
  const std::vector<int64_t> counts(sizes.data<int64_t>(), sizes.data<int64_t>() + comm.size());
  int64_t total = 0;
  for (int64_t count : counts) total += count;
  const Tensor mine = Tensor::Zeros({counts[comm.rank()]}, DType::kU8), all = Tensor::Zeros({total}, DType::kU8);
  if (!value.empty()) std::memcpy(mine.raw(), value.data(), value.size());
  SHOAL_RETURN_IF_ERROR(comm.AllGatherV(mine, counts, all, options)->Wait());
  std::vector<std::string> values;
  const char* at = static_cast<const char*>(all.raw());
  for (int64_t count : counts) {
    values.emplace_back(at, static_cast<size_t>(count));
    at += count;
  }
  return values;
}

absl::Status CheckEqualOnAllRanks(Communicator& comm, absl::string_view what, const std::string& value,
                                  CallOptions options) {
  SHOAL_ASSIGN_OR_RETURN(const std::vector<std::string> values, AllGatherStrings(comm, value, options));
  std::map<std::string, std::vector<int>> holders;
  for (size_t r = 0; r < values.size(); ++r) holders[values[r]].push_back(static_cast<int>(r));
  if (holders.size() == 1) return absl::OkStatus();
  std::vector<std::string> parts;
  for (const auto& [text, ranks] : holders) {
    parts.push_back(absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "), ": ",
                                 text.size() > 200 ? text.substr(0, 200) + "..." : text));
  }
  return EnvironmentError(absl::StrCat("ranks differ in their ", what, ":\n  ", absl::StrJoin(parts, "\n  ")));
}

}  // namespace shoal
