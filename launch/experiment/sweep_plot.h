// results.svg: a sweep's metric over one axis, a line per combination of its series, mean and range over seeds.
#pragma once

#include <string>
#include <vector>

#include "launch/experiment/results.h"

namespace shoal {

// An SVG document. Points where no seed has a value are crosses at the upper edge; where some diverged, too.
std::string PlotSweep(const Sweep& sweep, const std::vector<Cell>& cells);

}  // namespace shoal
