#pragma once

#include <vector>

#include "runtime/module/module.h"

namespace shoal {

inline std::vector<const Param*> Pointers(const std::vector<Param>& params) {
  std::vector<const Param*> pointers;
  for (const Param& p : params) pointers.push_back(&p);
  return pointers;
}

}  // namespace shoal
