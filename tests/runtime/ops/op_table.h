// What a row of an op table is, and what holds of every row.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "runtime/ops/reference/reference.h"
#include "tests/dispatch_targets.h"
#include "tests/runtime/ops/op_fixture.h"

namespace shoal {

struct Result {
  std::string name;
  Tensor got;
  reference::Values want;
};
using Row = std::function<std::vector<Result>(OpHarness&, DType)>;
struct OpRow {
  std::string name;
  Row run;
};

// The dtype of statistics and weight gradients.
inline DType Wide(DType t) { return t == DType::kF64 ? DType::kF64 : DType::kF32; }

class OpTable : public testing::TestWithParam<std::tuple<OpRow, DType>> {};

inline std::string OpTableName(const testing::TestParamInfo<std::tuple<OpRow, DType>>& info) {
  return std::get<0>(info.param).name + "_" + DTypeName(std::get<1>(info.param));
}

// The row equals its reference on every dispatch target, on 1 and 3 threads with equal bits.
inline void ExpectEqualsReferenceOnAnyNumberOfThreads(const OpRow& row, DType dtype) {
  OnEachDispatchTarget([&] {
    OpHarness one(1), three(3);
    const auto results = row.run(one, dtype), threaded = row.run(three, dtype);
    for (size_t i = 0; i < results.size(); ++i) {
      ExpectClose(results[i].got, results[i].want, Tolerance(dtype), row.name + " " + results[i].name);
      EXPECT_EQ(0, std::memcmp(results[i].got.raw(), threaded[i].got.raw(), results[i].got.bytes()))
          << row.name << " " << results[i].name << " differs between 1 and 3 threads";
    }
  });
}

}  // namespace shoal
