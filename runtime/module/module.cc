#include "runtime/module/module.h"

#include <glog/logging.h>

#include <map>

namespace shoal {

std::vector<Param*> AssignIds(Module& model) {
  std::vector<Param*> params;
  std::map<std::string, Param*> by_name;
  model.VisitParams([&](Param& param) {
    auto [at, added] = by_name.emplace(param.name, &param);
    if (!added) {
      CHECK(at->second == &param) << "two parameters are named " << param.name;
      ++param.uses;
      return;
    }
    param.id = static_cast<int>(params.size());
    param.uses = 1;
    params.push_back(&param);
  });
  return params;
}

}  // namespace shoal
