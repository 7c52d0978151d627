#include "comm/group_communicator.h"

#include <glog/logging.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "comm/reduce.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Way = Phase::Message::Way;

char* Bytes(const Tensor& t, int64_t element) { return static_cast<char*>(t.raw()) + element * DTypeBytes(t.dtype()); }

std::vector<int64_t> Offsets(absl::Span<const int64_t> counts) {
  std::vector<int64_t> offsets(counts.size() + 1);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

void CheckTensor(const Tensor& t) {
  CHECK(t.device() == DeviceKind::kCpu && t.contiguous()) << "collectives take contiguous host tensors";
}

// What ranks compare before a collective under CommOptions::Check: what differs is a bug that would hang or sum
// garbage.
struct Header {
  char text[256];
};

// Messages of piece(peer) to or from every other member, own rank + 1 first, so that no rank is everyone's first.
template <class F>
void ExchangeAmong(const std::vector<int>& members, int rank, Phase& phase, Way way, F piece) {
  const int n = static_cast<int>(members.size());
  for (int i = 1; i < n; ++i) {
    const int peer = way == Way::kSend ? (rank + i) % n : (rank + n - i) % n;
    const auto [data, bytes] = piece(peer);
    phase.messages.push_back({way, members[peer], data, bytes});
  }
}

// Each rank's piece of `in` goes to it, and what comes is reduced in rank order: `out` = op over ranks of piece `rank`.
struct Scatter {
  std::vector<int> members;
  int rank = 0;
  Tensor in;
  std::vector<int64_t> counts, at;  // of the pieces, in elements
  ReduceOp op;
  void* out = nullptr;  // may be the rank's own piece of `in`
};
// `engine` runs the phase, so it is there while it does.
Phase ScatterPhase(Engine* engine, Scatter s) {
  Phase scatter;
  scatter.prepare = [engine, s = std::move(s)](Operation& operation, Phase& phase) {
    const int n = static_cast<int>(s.members.size());
    const int64_t element = DTypeBytes(s.in.dtype()), mine = s.counts[s.rank];
    operation.scratch.push_back(engine->Scratch(mine * element * (n - 1)));
    std::vector<const void*> from(static_cast<size_t>(n), Bytes(s.in, s.at[s.rank]));
    char* incoming = operation.scratch.back().get();
    for (int r = 0, i = 0; r < n; ++r) {
      if (r != s.rank) from[static_cast<size_t>(r)] = incoming + i++ * mine * element;
    }
    ExchangeAmong(s.members, s.rank, phase, Way::kSend, [&](int peer) {
      return std::pair{static_cast<void*>(Bytes(s.in, s.at[peer])), s.counts[peer] * element};
    });
    ExchangeAmong(s.members, s.rank, phase, Way::kRecv, [&](int peer) {
      return std::pair{const_cast<void*>(from[static_cast<size_t>(peer)]), mine * element};
    });
    phase.then = [&operation, from, dtype = s.in.dtype(), op = s.op, mine, out = s.out] {
      ReduceInRankOrder(dtype, op, from, mine, out);
      operation.scratch.pop_back();
      return absl::OkStatus();
    };
  };
  return scatter;
}

// Where an encoded reduction's parts lie. `engine` runs the phases, so it is there while they do.
struct EncodedParts {
  Engine* engine = nullptr;
  std::vector<int> members;
  int rank = 0;
  EncodedReduction reduction;
  std::vector<int64_t> at;  // of the parts, in elements

  int ranks() const { return static_cast<int>(members.size()); }
  int64_t bytes(int r) const { return EncodedBytes(reduction, at[r], at[r + 1]); }
  float* Own(const Tensor& t) const { return t.defined() ? t.data<float>() + at[rank] : nullptr; }
  // This rank's part of the sum.
  float* Sum() const {
    return reduction.half == EncodedReduction::Half::kAll ? Own(reduction.out) : reduction.out.data<float>();
  }
};
uint8_t* TakeScratch(Engine* engine, Operation& operation, int64_t bytes) {
  operation.scratch.push_back(engine->Scratch(bytes));
  return reinterpret_cast<uint8_t*>(operation.scratch.back().get());
}

// Codes of every other rank's part go to it; what comes is decoded and summed in rank order.
Phase EncodedScatterPhase(std::shared_ptr<const EncodedParts> parts) {
  Phase scatter;
  scatter.prepare = [parts](Operation& operation, Phase& phase) {
    const EncodedReduction& reduction = parts->reduction;
    const int n = parts->ranks(), me = parts->rank;
    std::vector<int64_t> send_at(static_cast<size_t>(n) + 1);
    for (int r = 0; r < n; ++r) send_at[r + 1] = send_at[r] + (r == me ? 0 : parts->bytes(r));
    const int64_t mine = parts->bytes(me);
    uint8_t* out = TakeScratch(parts->engine, operation, send_at[n]);
    uint8_t* in = TakeScratch(parts->engine, operation, mine * (n - 1));
    const auto code_from = [=](int r) { return in + (r < me ? r : r - 1) * mine; };
    ExchangeAmong(parts->members, me, phase, Way::kSend, [&](int peer) {
      const int64_t begin = parts->at[peer], end = parts->at[peer + 1];
      EncodeRuns(reduction,
                 {.begin = begin,
                  .end = end,
                  .from = reduction.in.data<float>() + begin,
                  .residual = reduction.residual.defined() ? reduction.residual.data<float>() + begin : nullptr},
                 me, CodecKey::Point::kWorker, out + send_at[peer]);
      return std::pair{static_cast<void*>(out + send_at[peer]), parts->bytes(peer)};
    });
    ExchangeAmong(parts->members, me, phase, Way::kRecv, [&](int peer) {
      return std::pair{static_cast<void*>(code_from(peer)), mine};
    });
    phase.then = [&operation, parts, code_from] {
      const EncodedReduction& reduction = parts->reduction;
      const int me = parts->rank;
      for (int r = 0; r < parts->ranks(); ++r) {
        const auto into = r == 0 ? Codec::Into::kOverwrite : Codec::Into::kAdd;
        if (r == me) {
          AddOwnRuns(reduction, parts->at[me], parts->at[me + 1], into, parts->Sum());
        } else {
          DecodeRuns(reduction, code_from(r), parts->at[me], parts->at[me + 1], into, parts->Sum());
        }
      }
      ReplaceOwnResiduals(reduction, parts->at[me], parts->at[me + 1]);
      operation.scratch.resize(operation.scratch.size() - 2);
      return absl::OkStatus();
    };
  };
  return scatter;
}

// The owner's code of the sum goes to everyone; all decode all codes.
Phase EncodedGatherPhase(std::shared_ptr<const EncodedParts> parts) {
  Phase gather;
  gather.prepare = [parts](Operation& operation, Phase& phase) {
    const EncodedReduction& reduction = parts->reduction;
    const int n = parts->ranks(), me = parts->rank;
    std::vector<int64_t> code_at(static_cast<size_t>(n) + 1);
    for (int r = 0; r < n; ++r) code_at[r + 1] = code_at[r] + parts->bytes(r);
    uint8_t* codes = TakeScratch(parts->engine, operation, code_at[n]);
    EncodeRuns(reduction,
               {.begin = parts->at[me],
                .end = parts->at[me + 1],
                .from = parts->Sum(),
                .residual = parts->Own(reduction.residual),
                .residual_is = RunsToEncode::Residual::kOut},
               me, CodecKey::Point::kOwner, codes + code_at[me]);
    const auto piece = [&](int r) {
      return std::pair{static_cast<void*>(codes + code_at[r]), code_at[r + 1] - code_at[r]};
    };
    ExchangeAmong(parts->members, me, phase, Way::kSend, [&](int) { return piece(me); });
    ExchangeAmong(parts->members, me, phase, Way::kRecv, piece);
    phase.then = [&operation, parts, codes, code_at] {
      for (int r = 0; r < parts->ranks(); ++r) {
        DecodeRuns(parts->reduction, codes + code_at[r], parts->at[r], parts->at[r + 1], Codec::Into::kOverwrite,
                   parts->reduction.out.data<float>() + parts->at[r]);
      }
      operation.scratch.pop_back();
      return absl::OkStatus();
    };
  };
  return gather;
}

}  // namespace

GroupCommunicator::GroupCommunicator(std::shared_ptr<Engine> engine, std::vector<int> members, int rank, int channel,
                                     std::string name, CommOptions options)
    : engine_(std::move(engine)),
      members_(std::move(members)),
      rank_(rank),
      channel_(channel),
      name_(std::move(name)),
      options_(std::move(options)) {}

template <class F>
void GroupCommunicator::Exchange(Phase& phase, Way way, F piece) const {
  ExchangeAmong(members_, rank_, phase, way, piece);
}

void GroupCommunicator::Label(Operation& operation, const CallOptions& options) {
  operation.tag = std::string(options.tag);
  operation.group = name_;
  operation.sequence = ++sequence_;
  operation.deadline = options.deadline < absl::InfiniteDuration() ? options.deadline : options_.deadline;
  operation.after = options.after;
}

std::shared_ptr<Operation> GroupCommunicator::Begin(absl::string_view op, const CallOptions& options, DType dtype,
                                                    int64_t count, std::vector<Tensor> tensors) {
  auto operation = std::make_shared<Operation>();
  operation->op = std::string(op);
  Label(*operation, options);
  operation->bytes = count * DTypeBytes(dtype);
  operation->channel = channel_;
  operation->tensors = std::move(tensors);
  if (options_.check == CommOptions::Check::kOff || size() == 1) return operation;
  operation->scratch.push_back(engine_->Scratch(size() * static_cast<int64_t>(sizeof(Header))));
  Header* headers = reinterpret_cast<Header*>(operation->scratch.back().get());
  std::memset(static_cast<void*>(headers), 0, static_cast<size_t>(size()) * sizeof(Header));
  const std::string mine =
      absl::StrCat("#", operation->sequence, " ", op, " '", options.tag, "' ", DTypeName(dtype), " x ", count);
  std::strncpy(headers[rank_].text, mine.c_str(), sizeof(Header) - 1);
  Phase compare;
  Exchange(compare, Way::kSend, [&](int) {
    return std::pair{static_cast<void*>(&headers[rank_]), int64_t{sizeof(Header)}};
  });
  Exchange(compare, Way::kRecv, [&](int peer) {
    return std::pair{static_cast<void*>(&headers[peer]), int64_t{sizeof(Header)}};
  });
  compare.then = [headers, n = size(), me = rank_, name = name_, members = members_]() -> absl::Status {
    for (int r = 0; r < n; ++r) {
      if (std::strncmp(headers[r].text, headers[me].text, sizeof(Header)) == 0) continue;
      return absl::InternalError(absl::StrCat("ranks disagree on communicator ", name, ": rank ", members[me],
                                              " calls ", headers[me].text, ", rank ", members[r], " calls ",
                                              headers[r].text));
    }
    return absl::OkStatus();
  };
  operation->phases.push_back(std::move(compare));
  return operation;
}

WorkPtr GroupCommunicator::Submit(std::shared_ptr<Operation> operation) {
  engine_->Submit({channel_}, operation);
  return operation;
}

WorkPtr GroupCommunicator::AllReduce(const Tensor& x, ReduceOp op, CallOptions options) {
  CheckTensor(x);
  auto operation = Begin("all_reduce", options, x.dtype(), x.size(), {x});
  const int n = size();
  if (n == 1) return Submit(std::move(operation));
  const int64_t element = DTypeBytes(x.dtype());
  // A small tensor goes whole to everyone; of a large one each rank reduces its piece and hands it round.
  constexpr int64_t kSmall = 4096;
  const bool small = x.bytes() <= kSmall;
  std::vector<int64_t> counts(n, small ? x.size() : x.size() / n);
  if (!small) {
    for (int r = 0; r < static_cast<int>(x.size() % n); ++r) ++counts[r];
  }
  const std::vector<int64_t> at = small ? std::vector<int64_t>(n + 1, 0) : Offsets(counts);
  const int64_t mine = counts[rank_];
  operation->phases.push_back(ScatterPhase(engine_.get(), {members_, rank_, x, counts, at, op, Bytes(x, at[rank_])}));
  if (!small) {
    Phase gather;
    Exchange(gather, Way::kSend, [&](int) {
      return std::pair{static_cast<void*>(Bytes(x, at[rank_])), mine * element};
    });
    Exchange(gather, Way::kRecv, [&](int peer) {
      return std::pair{static_cast<void*>(Bytes(x, at[peer])), counts[peer] * element};
    });
    operation->phases.push_back(std::move(gather));
  }
  return Submit(std::move(operation));
}

WorkPtr GroupCommunicator::ReduceScatterV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out,
                                          ReduceOp op, CallOptions options) {
  CheckTensor(in);
  CheckTensor(out);
  const std::vector<int64_t> at = Offsets(counts);
  CHECK(static_cast<int>(counts.size()) == size() && at.back() == in.size() && counts[rank_] == out.size() &&
        in.dtype() == out.dtype())
      << "reduce_scatter: counts do not match the tensors";
  auto operation = Begin("reduce_scatter", options, in.dtype(), in.size(), {in, out});
  operation->phases.push_back(
      ScatterPhase(engine_.get(), {members_, rank_, in, {counts.begin(), counts.end()}, at, op, out.raw()}));
  return Submit(std::move(operation));
}

WorkPtr GroupCommunicator::ReduceEncoded(EncodedReduction reduction, CallOptions options) {
  const std::vector<int64_t> at = Offsets(reduction.counts);
  const int64_t elements = reduction.in.size();
  const bool all = reduction.half == EncodedReduction::Half::kAll;
  CheckTensor(reduction.in);
  CheckTensor(reduction.out);
  CHECK(reduction.in.dtype() == DType::kF32 && reduction.out.dtype() == DType::kF32) << "codes are of f32";
  CHECK(static_cast<int>(reduction.counts.size()) == size() && at.back() == elements &&
        reduction.out.size() == (all ? elements : reduction.counts[rank_]) &&
        (!reduction.residual.defined() || reduction.residual.size() == elements) &&
        (reduction.runs.empty() ? 0 : reduction.runs.back().end) == elements)
      << "reduce_encoded: counts or runs do not match the tensors";
  auto operation =
      Begin(options_.check == CommOptions::Check::kOff ? "reduce_encoded"
                                                       : absl::StrCat("reduce_encoded ", EncodedLayout(reduction)),
            options, DType::kF32, elements, {reduction.in, reduction.residual, reduction.out});
  if (TravelsPlain(reduction)) {
    const int64_t element = DTypeBytes(DType::kF32), mine = all ? at[rank_] : 0;
    const Tensor out = reduction.out;
    operation->phases.push_back(ScatterPhase(
        engine_.get(), {members_, rank_, reduction.in, reduction.counts, at, ReduceOp::kSum, Bytes(out, mine)}));
    if (all && size() > 1) {
      Phase gather;
      Exchange(gather, Way::kSend, [&](int) {
        return std::pair{static_cast<void*>(Bytes(out, mine)), reduction.counts[rank_] * element};
      });
      Exchange(gather, Way::kRecv, [&](int peer) {
        return std::pair{static_cast<void*>(Bytes(out, at[peer])), reduction.counts[peer] * element};
      });
      operation->phases.push_back(std::move(gather));
    }
    return Submit(std::move(operation));
  }
  auto parts =
      std::make_shared<const EncodedParts>(EncodedParts{engine_.get(), members_, rank_, std::move(reduction), at});
  operation->bytes = size() > 1 ? EncodedBytes(parts->reduction, 0, elements) : 0;
  operation->phases.push_back(EncodedScatterPhase(parts));
  if (all && size() > 1) operation->phases.push_back(EncodedGatherPhase(parts));
  return Submit(std::move(operation));
}

WorkPtr GroupCommunicator::AllGatherV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out,
                                      CallOptions options) {
  CheckTensor(in);
  CheckTensor(out);
  const std::vector<int64_t> at = Offsets(counts);
  CHECK(static_cast<int>(counts.size()) == size() && at.back() == out.size() && counts[rank_] == in.size() &&
        in.dtype() == out.dtype())
      << "all_gather: counts do not match the tensors";
  auto operation = Begin("all_gather", options, in.dtype(), out.size(), {in, out});
  const int64_t element = DTypeBytes(in.dtype());
  Phase gather;
  Exchange(gather, Way::kSend, [&](int) { return std::pair{in.raw(), in.bytes()}; });
  Exchange(gather, Way::kRecv, [&](int peer) {
    return std::pair{static_cast<void*>(Bytes(out, at[peer])), counts[peer] * element};
  });
  gather.then = [in, to = Bytes(out, at[rank_])] {
    if (in.raw() != to && in.bytes() > 0) std::memmove(to, in.raw(), static_cast<size_t>(in.bytes()));
    return absl::OkStatus();
  };
  operation->phases.push_back(std::move(gather));
  return Submit(std::move(operation));
}

WorkPtr GroupCommunicator::AllToAllV(const Tensor& in, absl::Span<const int64_t> send_counts, const Tensor& out,
                                     absl::Span<const int64_t> recv_counts, CallOptions options) {
  CheckTensor(in);
  CheckTensor(out);
  const std::vector<int64_t> from = Offsets(send_counts), to = Offsets(recv_counts);
  CHECK(static_cast<int>(send_counts.size()) == size() && static_cast<int>(recv_counts.size()) == size() &&
        from.back() == in.size() && to.back() == out.size() && in.dtype() == out.dtype() &&
        send_counts[rank_] == recv_counts[rank_])
      << "all_to_all: counts do not match the tensors";
  // Counts differ between ranks by design, so the cross-rank check compares everything else.
  auto operation = Begin("all_to_all", options, in.dtype(), 0, {in, out});
  operation->bytes = in.bytes();
  const int64_t element = DTypeBytes(in.dtype());
  Phase exchange;
  Exchange(exchange, Way::kSend, [&](int peer) {
    return std::pair{static_cast<void*>(Bytes(in, from[peer])), send_counts[peer] * element};
  });
  Exchange(exchange, Way::kRecv, [&](int peer) {
    return std::pair{static_cast<void*>(Bytes(out, to[peer])), recv_counts[peer] * element};
  });
  exchange.then = [source = Bytes(in, from[rank_]), target = Bytes(out, to[rank_]),
                   bytes = send_counts[rank_] * element] {
    if (bytes > 0) std::memcpy(target, source, static_cast<size_t>(bytes));
    return absl::OkStatus();
  };
  operation->phases.push_back(std::move(exchange));
  return Submit(std::move(operation));
}

WorkPtr GroupCommunicator::Broadcast(const Tensor& x, int root, CallOptions options) {
  CheckTensor(x);
  CHECK(root >= 0 && root < size()) << "broadcast from rank " << root << " of " << size();
  auto operation = Begin("broadcast", options, x.dtype(), x.size(), {x});
  // A binomial tree on ranks counted from the root: receive from the parent, then send to the children.
  const int me = (rank_ - root + size()) % size();
  int reach = 1;
  while (reach <= me) reach *= 2;
  const auto world = [&](int relative) { return members_[(relative + root) % size()]; };
  if (me > 0)
    operation->phases.push_back({{{Way::kRecv, world(me - reach / 2), x.raw(), x.bytes()}}, nullptr, nullptr});
  Phase send;
  for (int child = reach; me + child < size(); child *= 2)
    send.messages.push_back({Way::kSend, world(me + child), x.raw(), x.bytes()});
  operation->phases.push_back(std::move(send));
  return Submit(std::move(operation));
}

WorkPtr GroupCommunicator::PointToPoint(Way way, const Tensor& x, int peer, const CallOptions& options) {
  CheckTensor(x);
  auto operation = std::make_shared<Operation>();
  operation->op = way == Way::kSend ? "send" : "recv";
  Label(*operation, options);
  operation->bytes = x.bytes();
  operation->channel = channel_ + 1;
  operation->tensors = {x};
  operation->phases.push_back({{{way, members_[peer], x.raw(), x.bytes()}}, nullptr, nullptr});
  engine_->Submit({channel_, way == Way::kSend ? Engine::Queue::Kind::kSend : Engine::Queue::Kind::kRecv, peer},
                  operation);
  return operation;
}

WorkPtr GroupCommunicator::Send(const Tensor& x, int to, CallOptions options) {
  return PointToPoint(Way::kSend, x, to, options);
}
WorkPtr GroupCommunicator::Recv(const Tensor& x, int from, CallOptions options) {
  return PointToPoint(Way::kRecv, x, from, options);
}

WorkPtr GroupCommunicator::Barrier(CallOptions options) {
  auto operation = Begin("barrier", options, DType::kU8, 0, {});
  Phase meet;
  const auto nothing = [](int) { return std::pair{static_cast<void*>(nullptr), int64_t{0}}; };
  Exchange(meet, Way::kSend, nothing);
  Exchange(meet, Way::kRecv, nothing);
  operation->phases.push_back(std::move(meet));
  return Submit(std::move(operation));
}

absl::StatusOr<std::unique_ptr<Communicator>> GroupCommunicator::Split(int color, int key, absl::string_view name) {
  // Everyone learns everyone's wish, and a channel number that is free on all.
  const Tensor mine = Tensor::Zeros({3}, DType::kI64), all = Tensor::Zeros({size(), 3}, DType::kI64);
  mine.data<int64_t>()[0] = color;
  mine.data<int64_t>()[1] = key;
  mine.data<int64_t>()[2] = engine_->next_channel();
  const std::vector<int64_t> counts(size(), 3);
  const std::string tag = absl::StrCat("split ", name);
  SHOAL_RETURN_IF_ERROR(AllGatherV(mine, counts, all.View({3 * size()}), {.tag = tag})->Wait());
  const int64_t* wish = all.data<int64_t>();
  int64_t channel = 0;
  std::vector<std::pair<int64_t, int>> chosen;  // (key, rank here)
  for (int r = 0; r < size(); ++r) {
    channel = std::max(channel, wish[3 * r + 2]);
    if (wish[3 * r] == color) chosen.emplace_back(wish[3 * r + 1], r);
  }
  engine_->set_next_channel(static_cast<int>(channel + 2));
  if (color < 0) return std::unique_ptr<Communicator>();
  std::sort(chosen.begin(), chosen.end());
  std::vector<int> members;
  int rank = 0;
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (chosen[i].second == rank_) rank = static_cast<int>(i);
    members.push_back(members_[chosen[i].second]);
  }
  return std::unique_ptr<Communicator>(std::make_unique<GroupCommunicator>(
      engine_, std::move(members), rank, static_cast<int>(channel), std::string(name), options_));
}

}  // namespace shoal
