// The collective table, for thread ranks and for mpirun: every operation x dtype x size, against float64 references.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/codec/codec.h"
#include "comm/communicator.h"
#include "runtime/base/status.h"

namespace shoal {

// Small integers and halves: sums are exact in every dtype, so any wrong order of pieces shows, and any dtype compares.
inline double TableValue(int rank, int64_t i, DType dtype) {
  const int64_t v = (i * 7 + rank * 13) % 11 - (dtype == DType::kU8 ? 0 : 5);
  return static_cast<double>(v < 0 && dtype == DType::kU8 ? 0 : v);
}
inline void Put(const Tensor& t, int64_t i, double v) {
  switch (t.dtype()) {
    case DType::kF32:
      t.data<float>()[i] = static_cast<float>(v);
      break;
    case DType::kF64:
      t.data<double>()[i] = v;
      break;
    case DType::kBF16:
      t.data<BFloat16>()[i] = BFloat16(static_cast<float>(v));
      break;
    case DType::kI32:
      t.data<int32_t>()[i] = static_cast<int32_t>(v);
      break;
    case DType::kI64:
      t.data<int64_t>()[i] = static_cast<int64_t>(v);
      break;
    case DType::kU8:
      t.data<uint8_t>()[i] = static_cast<uint8_t>(v);
      break;
  }
}
inline double Get(const Tensor& t, int64_t i) {
  switch (t.dtype()) {
    case DType::kF32:
      return static_cast<double>(t.data<float>()[i]);
    case DType::kF64:
      return t.data<double>()[i];
    case DType::kBF16:
      return static_cast<double>(static_cast<float>(t.data<BFloat16>()[i]));
    case DType::kI32:
      return t.data<int32_t>()[i];
    case DType::kI64:
      return static_cast<double>(t.data<int64_t>()[i]);
    case DType::kU8:
      return t.data<uint8_t>()[i];
  }
  return 0;
}
inline Tensor TableTensor(int rank, int64_t n, DType dtype, int64_t first = 0) {
  Tensor t = Tensor::Zeros({n}, dtype);
  for (int64_t i = 0; i < n; ++i) Put(t, i, TableValue(rank, first + i, dtype));
  return t;
}

// Encoded reductions of what bf16 holds exactly, whole and scattered, with and without error feedback.
inline absl::Status EncodedRow(Communicator& comm, const std::vector<int64_t>& counts, const std::vector<int64_t>& at,
                               const std::string& row) {
  const int n = comm.size(), me = comm.rank();
  for (const char* name : {"fp32", "bf16"}) {
    SHOAL_ASSIGN_OR_RETURN(const auto codec, MakeCodec(name));
    for (const auto half : {EncodedReduction::Half::kAll, EncodedReduction::Half::kScatter}) {
      for (const bool feedback : {false, true}) {
        const bool all = half == EncodedReduction::Half::kAll;
        EncodedReduction reduction;
        reduction.in = TableTensor(me, at[n], DType::kF32);
        if (feedback) reduction.residual = Tensor::Zeros({at[n]}, DType::kF32);
        reduction.counts = counts;
        reduction.runs = {{.begin = 0, .end = at[n], .codec = codec.get(), .tensor = 1}};
        reduction.half = half;
        const Tensor out = reduction.out = Tensor::Zeros({all ? at[n] : counts[me]}, DType::kF32);
        SHOAL_RETURN_IF_ERROR(comm.ReduceEncoded(std::move(reduction), {.tag = row})->Wait());
        for (int64_t i = 0; i < out.size(); ++i) {
          double want = 0;
          for (int r = 0; r < n; ++r) want += TableValue(r, (all ? 0 : at[me]) + i, DType::kF32);
          if (Get(out, i) != want)
            return absl::InternalError(absl::StrCat("reduce_encoded ", name, " ", row, ", rank ", me, " of ", n,
                                                    ", element ", i, ": ", Get(out, i), ", wanted ", want));
        }
      }
    }
  }
  return absl::OkStatus();
}

// Runs the whole table on this rank; the first difference is the error.
inline absl::Status RunCollectiveTable(Communicator& comm, const std::vector<int64_t>& sizes) {
  const int n = comm.size(), me = comm.rank();
  const auto reduced = [&](ReduceOp op, int64_t i, DType t) {
    double v = TableValue(0, i, t);
    for (int r = 1; r < n; ++r) {
      const double x = TableValue(r, i, t);
      v = op == ReduceOp::kSum ? v + x : op == ReduceOp::kMax ? std::max(v, x) : std::min(v, x);
    }
    return v;
  };
  const auto expect = [&](const Tensor& got, int64_t i, double want, const std::string& what) {
    return Get(got, i) == want ? absl::OkStatus()
                               : absl::InternalError(absl::StrCat(what, ", rank ", me, " of ", n, ", element ", i, ": ",
                                                                  Get(got, i), ", wanted ", want));
  };
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64}) {
    for (const int64_t size : sizes) {
      const std::string row = absl::StrCat(DTypeName(t), " x ", size);
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kMin}) {
        const Tensor x = TableTensor(me, size, t);
        SHOAL_RETURN_IF_ERROR(comm.AllReduce(x, op, {.tag = row})->Wait());
        for (int64_t i = 0; i < size; ++i) SHOAL_RETURN_IF_ERROR(expect(x, i, reduced(op, i, t), "all_reduce " + row));
      }
      // Uneven pieces, some of them empty.
      std::vector<int64_t> counts(n), at(n + 1);
      for (int r = 0; r < n; ++r) counts[r] = r % 3 == 1 ? 0 : size / n + r;
      for (int r = 0; r < n; ++r) at[r + 1] = at[r] + counts[r];
      const Tensor in = TableTensor(me, at[n], t), part = Tensor::Zeros({counts[me]}, t);
      SHOAL_RETURN_IF_ERROR(comm.ReduceScatterV(in, counts, part, ReduceOp::kSum, {.tag = row})->Wait());
      for (int64_t i = 0; i < counts[me]; ++i)
        SHOAL_RETURN_IF_ERROR(expect(part, i, reduced(ReduceOp::kSum, at[me] + i, t), "reduce_scatter " + row));
      if (t == DType::kF32) SHOAL_RETURN_IF_ERROR(EncodedRow(comm, counts, at, row));
      const Tensor all = Tensor::Zeros({at[n]}, t);
      SHOAL_RETURN_IF_ERROR(comm.AllGatherV(TableTensor(me, counts[me], t), counts, all, {.tag = row})->Wait());
      for (int r = 0; r < n; ++r) {
        for (int64_t i = 0; i < counts[r]; ++i)
          SHOAL_RETURN_IF_ERROR(expect(all, at[r] + i, TableValue(r, i, t), "all_gather " + row));
      }
      // Rank s sends s + r + size / n elements to rank r.
      std::vector<int64_t> send(n), recv(n);
      int64_t sent = 0, received = 0;
      for (int r = 0; r < n; ++r) {
        sent += send[r] = size / n + me + r;
        received += recv[r] = size / n + r + me;
      }
      const Tensor out = Tensor::Zeros({received}, t);
      SHOAL_RETURN_IF_ERROR(comm.AllToAllV(TableTensor(me, sent, t), send, out, recv, {.tag = row})->Wait());
      for (int64_t r = 0, to = 0; r < n; ++r) {
        int64_t from = 0;
        for (int p = 0; p < me; ++p) from += size / n + r + p;
        for (int64_t i = 0; i < recv[r]; ++i)
          SHOAL_RETURN_IF_ERROR(expect(out, to + i, TableValue(static_cast<int>(r), from + i, t), "all_to_all " + row));
        to += recv[r];
      }
      for (const int root : {0, n - 1}) {
        const Tensor x = TableTensor(me, size, t);
        SHOAL_RETURN_IF_ERROR(comm.Broadcast(x, root, {.tag = row})->Wait());
        for (int64_t i = 0; i < size; ++i)
          SHOAL_RETURN_IF_ERROR(expect(x, i, TableValue(root, i, t), "broadcast " + row));
      }
      if (n > 1) {
        const Tensor from = TableTensor(me, size, t), got = Tensor::Zeros({size}, t);
        const WorkPtr s = comm.Send(from, (me + 1) % n, {.tag = row});
        const WorkPtr r = comm.Recv(got, (me + n - 1) % n, {.tag = row});
        SHOAL_RETURN_IF_ERROR(s->Wait());
        SHOAL_RETURN_IF_ERROR(r->Wait());
        for (int64_t i = 0; i < size; ++i)
          SHOAL_RETURN_IF_ERROR(expect(got, i, TableValue((me + n - 1) % n, i, t), "send/recv " + row));
      }
      SHOAL_RETURN_IF_ERROR(comm.Barrier({.tag = row})->Wait());
    }
  }
  // Sums of values that round: rank order, in fp32.
  const Tensor x = Tensor::Zeros({3000}, DType::kF32);
  for (int64_t i = 0; i < 3000; ++i) x.data<float>()[i] = 1.0f / static_cast<float>(1 + i + 17 * me);
  SHOAL_RETURN_IF_ERROR(comm.AllReduce(x, ReduceOp::kSum, {.tag = "order"})->Wait());
  for (int64_t i = 0; i < 3000; ++i) {
    float want = 1.0f / static_cast<float>(1 + i);
    for (int r = 1; r < n; ++r) want += 1.0f / static_cast<float>(1 + i + 17 * r);
    SHOAL_RETURN_IF_ERROR(expect(x, i, static_cast<double>(want), "rank order"));
  }
  // Groups made by Split, and operations pending on several communicators, submitted in opposite orders.
  auto half = comm.Split(me % 2, -me, "half");
  if (!half.ok()) return half.status();
  auto other = comm.Split(0, me, "other");
  if (!other.ok()) return other.status();
  const Tensor a = TableTensor(me, 5000, DType::kF32), b = TableTensor(me, 5000, DType::kF32);
  WorkPtr wa, wb;
  if (me % 2 == 0)
    wa = comm.AllReduce(a, ReduceOp::kSum, {.tag = "a"}), wb = (*other)->AllReduce(b, ReduceOp::kSum, {.tag = "b"});
  else
    wb = (*other)->AllReduce(b, ReduceOp::kSum, {.tag = "b"}), wa = comm.AllReduce(a, ReduceOp::kSum, {.tag = "a"});
  SHOAL_RETURN_IF_ERROR(wb->Wait());
  SHOAL_RETURN_IF_ERROR(wa->Wait());
  for (int64_t i = 0; i < 5000; ++i)
    SHOAL_RETURN_IF_ERROR(expect(b, i, reduced(ReduceOp::kSum, i, DType::kF32), "second communicator"));
  auto strings = AllGatherStrings(**half, std::string(static_cast<size_t>(me), 'x'), {.tag = "strings"});
  if (!strings.ok()) return strings.status();
  // Keys are -rank, so the highest rank comes first.
  const int last = n - 1 - ((n - 1) % 2 == me % 2 ? 0 : 1);
  if (static_cast<int>((*strings)[0].size()) != last)
    return absl::InternalError(absl::StrCat("split by key: first is rank ", (*strings)[0].size(), ", wanted ", last));
  return absl::OkStatus();
}

}  // namespace shoal
