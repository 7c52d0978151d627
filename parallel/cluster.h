// The cost of sequences on a cluster that a file describes (parallel/cluster.proto): what plans of a machine that is
// not at hand are predicted with. Pure; nothing here is measured.
//
// Formulas, for one sequence of s tokens at degree d (research/flexsp.md §1.1, §2.2, §5.10):
//   products     6 x (matrices' parameters) FLOP a token, forward and backward; more where forward is done again
//   attention    6 L H C s^2: two products of H C s^2 each way, causal pairs only, backward twice forward
//   all-to-all,  bytes of parallel/sequence_traffic.h: (2 H + 2 max(K, d)) C elements a token and layer each way. From
//   ring         links, the rank's own part, 1/d, does not travel. Charged in full, though attention hides some of a
//                ring's
//   memory       usable bytes less states (ZeRO over all ranks), over activations of a token
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/cluster.pb.h"
#include "parallel/sequence_plan.h"

namespace shoal {

// Calls `report` with every field ("links.efficiency") that is missing, out of range or at odds with another, and what
// is wrong with it.
void CheckCluster(const config::Cluster& cluster,
                  const std::function<void(const std::string& field, const std::string& problem)>& report);

// Of a model that has passed CheckCluster; likewise below.
double ParameterCount(const config::ClusterModel& model);
double FlopsPerToken(const config::ClusterModel& model, double recomputed);         // forward and backward
double FlopsPerSquaredToken(const config::ClusterModel& model, double recomputed);  // of attention
// The largest power of two over which query and key heads split evenly, or key heads repeat evenly.
int UlyssesLimit(const config::ClusterModel& model);
// Bytes of the buffers of all all-to-alls at `degree`, times degree / tokens, over all layers; the rank's own part
// included.
double ExchangeBytesPerToken(const config::ClusterModel& model, int degree);
// Bytes a token that `rings` groups pass around, times degree / tokens, over all layers.
double RingBytesPerToken(const config::ClusterModel& model, int degree, int rings);

// Bytes per second at which a rank of an aligned group sends what leaves it: within the node and between nodes at once,
// the slower decides.
double LinkRate(const config::Cluster& cluster, int degree);
// Of a ring over `ranks` consecutive ranks: the slowest edge; a node's ring passes its link once.
double RingRate(const config::Cluster& cluster, int ranks);

struct ClusterCosts {
  SequenceCostModel model;
  double step = 0;  // seconds of a step beside its micro-batches: what ZeRO 0 to 2 gather and reduce once
  // What these were made of.
  double parameters = 0;
  double usable = 0, states = 0;  // bytes a rank
  double activation = 0;          // bytes a token
  double traffic = 0;             // seconds of a micro-batch's gathers and reductions that are not hidden; in fixed
  double latency = 0;             // seconds of a micro-batch's exchanges; in fixed
};
// Of the cluster's kind of nodes with `ranks` ranks in all, a multiple of those of a node. InvalidArgument names the
// nearest numbers of ranks, or the ranks that states need.
absl::StatusOr<ClusterCosts> DeriveCosts(const config::Cluster& cluster, int ranks);

}  // namespace shoal
