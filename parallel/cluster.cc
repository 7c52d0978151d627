#include "parallel/cluster.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "parallel/sequence_traffic.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

constexpr int64_t kMostRanks = 1 << 20;
constexpr int kMostHeads = 1 << 16;
constexpr double kMostTokens = 1e12;  // of a rank: more than any batch has
constexpr double kGB = 1e9, kMiB = 1 << 20, kGiB = 1 << 30;

double HeadSize(const config::ClusterModel& m) {
  return m.has_head_size() ? m.head_size() : static_cast<double>(m.width()) / m.heads();
}
int KvHeads(const config::ClusterModel& m) { return m.has_kv_heads() ? m.kv_heads() : m.heads(); }
AttentionHeads HeadsOf(const config::ClusterModel& m) {
  return {.heads = m.heads(), .key_heads = KvHeads(m), .size = static_cast<int64_t>(HeadSize(m))};
}

// Of the products with weights; embeddings are looked up.
double MatrixParameters(const config::ClusterModel& m) {
  const double width = m.width(), ffn = m.has_ffn() ? m.ffn() : 4.0 * width;
  const double attention = width * HeadSize(m) * (2.0 * m.heads() + 2.0 * KvHeads(m));
  const double layer = attention + (m.gated() ? 3 : 2) * width * ffn;
  return m.layers() * layer + width * m.vocabulary();
}

double InterRate(const config::Cluster& c) {  // of a rank
  const auto& links = c.links();
  return links.efficiency() * kGB *
         (links.has_inter_gb_per_s_per_node() ? links.inter_gb_per_s_per_node() / c.ranks_per_node()
                                              : links.inter_gb_per_s_per_rank());
}
double IntraRate(const config::Cluster& c) { return c.links().efficiency() * kGB * c.links().intra_gb_per_s(); }

// Of an aligned group of `degree` ranks: how many of them are in a rank's node at least. Where a node has no power of
// two of ranks, groups lie across its edge.
int InNode(const config::Cluster& c, int degree) { return std::min(degree, c.ranks_per_node() & -c.ranks_per_node()); }

// Seconds of `degree` ranks' exchanges of a token, times the degree.
double ExchangeSeconds(const config::Cluster& c, int degree) {
  const auto& m = c.model();
  const int ulysses = std::min(degree, UlyssesLimit(m)), rings = degree / ulysses;
  double seconds = 0;
  if (ulysses > 1) {
    const auto& measured = c.links().all_to_all();
    const double bytes = ExchangeBytesPerToken(m, ulysses);
    const int level = std::countr_zero(static_cast<unsigned>(ulysses)) - 1;
    seconds += measured.empty() ? bytes * (ulysses - 1) / ulysses / LinkRate(c, ulysses)
                                : bytes / (measured.Get(std::min(level, measured.size() - 1)).gb_per_s() * kGB);
  }
  // Neighbours in a ring are `ulysses` ranks apart: beyond a node each rank has its share of the node's link.
  if (rings > 1)
    seconds += RingBytesPerToken(m, degree, rings) / (InNode(c, degree) == degree ? IntraRate(c) : InterRate(c));
  return seconds;
}

// Bytes of states on a rank, over those of one parameter.
double StateBytes(const config::ClusterStates& s, int ranks) {
  const auto share = [&](int stage) { return s.zero() >= stage ? 1.0 / ranks : 1.0; };
  return s.optimizer_bytes() * share(1) + s.gradient_bytes() * share(2) + s.weight_bytes() * share(3);
}

// Collects what CheckCluster finds.
class Checker {
 public:
  explicit Checker(const std::function<void(const std::string&, const std::string&)>& report) : report_(report) {}

  void Report(const std::string& field, const std::string& problem) { report_(field, problem); }
  template <typename Number>
  void Above0(const std::string& field, bool set, Number value, const char* example) {
    if (!set)
      report_(field, absl::StrCat("is missing; for example ", example));
    else if (!(value > 0))
      report_(field, absl::StrCat("is ", value, "; it is above 0"));
  }
  void NotBelow0(const std::string& field, double value) {
    if (!(value >= 0)) report_(field, absl::StrCat("is ", value, "; it is 0 or more"));
  }
  void Share(const std::string& field, double value) {
    if (!(value > 0 && value <= 1)) report_(field, absl::StrCat("is ", value, "; it lies in (0, 1]"));
  }

 private:
  const std::function<void(const std::string&, const std::string&)>& report_;
};

void CheckModel(const config::ClusterModel& m, Checker& check) {
  check.Above0("model.layers", m.has_layers(), m.layers(), "32");
  check.Above0("model.width", m.has_width(), m.width(), "4096");
  check.Above0("model.heads", m.has_heads(), m.heads(), "32");
  if (m.heads() > kMostHeads)
    check.Report("model.heads", absl::StrCat("is ", m.heads(), "; it is at most ", kMostHeads));
  check.Above0("model.vocabulary", m.has_vocabulary(), m.vocabulary(), "50257");
  if (m.has_kv_heads() && m.heads() > 0 && (m.kv_heads() < 1 || m.heads() % m.kv_heads() != 0))
    check.Report("model.kv_heads", absl::StrCat("is ", m.kv_heads(), "; it divides heads, ", m.heads()));
  if (m.has_head_size()) check.Above0("model.head_size", true, m.head_size(), "128");
  if (!m.has_head_size() && m.heads() > 0 && m.width() % m.heads() != 0)
    check.Report("model.heads", absl::StrCat("is ", m.heads(), ", which does not divide width ", m.width(),
                                             "; set head_size, or another number"));
  if (m.has_ffn()) check.Above0("model.ffn", true, m.ffn(), "16384");
  if (m.has_parameters()) check.Above0("model.parameters", true, m.parameters(), "7e9");
  check.NotBelow0("model.learned_positions", static_cast<double>(m.learned_positions()));
  check.Above0("model.bytes_per_element", true, m.bytes_per_element(), "2");
}

void CheckCompute(const config::ClusterCompute& c, Checker& check) {
  const bool constants = c.has_quadratic_ms() || c.has_linear_ms();
  if (constants && c.has_peak_tflops())
    check.Report("compute.peak_tflops",
                 "stands beside quadratic_ms or linear_ms; keep these constants, or the peak to derive them from");
  if (!constants && !c.has_peak_tflops())
    check.Report("compute", "needs quadratic_ms and linear_ms, or peak_tflops to derive them from");
  if (c.has_peak_tflops()) check.Above0("compute.peak_tflops", true, c.peak_tflops(), "312");
  if (constants) {
    check.Above0("compute.quadratic_ms", c.has_quadratic_ms(), c.quadratic_ms(), "5e-6");
    check.Above0("compute.linear_ms", c.has_linear_ms(), c.linear_ms(), "0.2");
  }
  check.Share("compute.efficiency", c.efficiency());
  check.Share("compute.attention_efficiency", c.attention_efficiency());
  if (!(c.recomputed() >= 0 && c.recomputed() <= 1))
    check.Report("compute.recomputed", absl::StrCat("is ", c.recomputed(), "; it lies in [0, 1]"));
  check.NotBelow0("compute.fixed_ms", c.fixed_ms());
  check.NotBelow0("compute.launch_ms", c.launch_ms());
  if (c.has_fixed_ms() && c.has_launch_ms()) check.Report("compute.launch_ms", "is in fixed_ms already; keep one");
}

void CheckLinks(const config::Cluster& c, Checker& check) {
  const auto& links = c.links();
  check.Above0("links.intra_gb_per_s", links.has_intra_gb_per_s(), links.intra_gb_per_s(), "300");
  if (links.has_inter_gb_per_s_per_rank())
    check.Above0("links.inter_gb_per_s_per_rank", true, links.inter_gb_per_s_per_rank(), "6.25");
  else if (links.has_inter_gb_per_s_per_node())
    check.Above0("links.inter_gb_per_s_per_node", true, links.inter_gb_per_s_per_node(), "50");
  else
    check.Report("links", "needs inter_gb_per_s_per_node or inter_gb_per_s_per_rank");
  check.Share("links.efficiency", links.efficiency());
  check.NotBelow0("links.latency_us", links.latency_us());
  for (int i = 0; i < links.all_to_all_size(); ++i) {
    const auto& exchange = links.all_to_all(i);
    const std::string field = absl::StrCat("links.all_to_all[", i, "]");
    if (i < 30 && exchange.degree() != 2 << i)
      check.Report(field + ".degree", absl::StrCat("is ", exchange.degree(),
                                                   "; degrees are 2, 4, 8, .. in this order: ", 2 << i, " here"));
    check.Above0(field + ".gb_per_s", exchange.has_gb_per_s(), exchange.gb_per_s(), "100");
  }
}

}  // namespace

void CheckCluster(const config::Cluster& cluster,
                  const std::function<void(const std::string&, const std::string&)>& report) {
  Checker check(report);
  check.Above0("nodes", cluster.has_nodes(), cluster.nodes(), "8");
  check.Above0("ranks_per_node", cluster.has_ranks_per_node(), cluster.ranks_per_node(), "8");
  if (int64_t{cluster.nodes()} * cluster.ranks_per_node() > kMostRanks)
    check.Report("nodes", absl::StrCat("and ranks_per_node make more than ", kMostRanks, " ranks"));
  CheckModel(cluster.model(), check);
  const auto& memory = cluster.memory();
  check.Above0("memory.gib_per_rank", memory.has_gib_per_rank(), memory.gib_per_rank(), "80");
  if (memory.has_usable_gib()) check.Above0("memory.usable_gib", true, memory.usable_gib(), "64");
  if (memory.usable_gib() > memory.gib_per_rank())
    check.Report("memory.usable_gib",
                 absl::StrCat("is ", memory.usable_gib(), ", more than gib_per_rank, ", memory.gib_per_rank()));
  if (memory.has_activation_mib_per_token())
    check.Above0("memory.activation_mib_per_token", true, memory.activation_mib_per_token(), "4");
  const auto& states = cluster.states();
  if (states.zero() < 0 || states.zero() > 3)
    check.Report("states.zero", absl::StrCat("is ", states.zero(), "; stages are 0, 1, 2 and 3"));
  check.Above0("states.weight_bytes", true, states.weight_bytes(), "2");
  check.Above0("states.gradient_bytes", true, states.gradient_bytes(), "2");
  check.NotBelow0("states.optimizer_bytes", states.optimizer_bytes());
  if (!(states.overlap() >= 0 && states.overlap() <= 1))
    check.Report("states.overlap", absl::StrCat("is ", states.overlap(), "; it lies in [0, 1]"));
  CheckCompute(cluster.compute(), check);
  CheckLinks(cluster, check);
  const auto& lengths = cluster.lengths();
  check.Above0("lengths.max_tokens", lengths.has_max_tokens(), lengths.max_tokens(), "131072");
  if (lengths.has_sequences() || lengths.scaling() == config::ClusterLengths::WITH_RANKS)
    check.Above0("lengths.sequences", lengths.has_sequences(), lengths.sequences(), "512");
  if (lengths.has_batches()) check.Above0("lengths.batches", true, lengths.batches(), "10");
}

double ParameterCount(const config::ClusterModel& m) {
  if (m.has_parameters()) return m.parameters();
  const double tables = (m.tied() ? 0.0 : m.vocabulary()) + static_cast<double>(m.learned_positions());
  return MatrixParameters(m) + m.width() * tables;
}

double FlopsPerToken(const config::ClusterModel& m, double recomputed) {
  return 2 * (3 + recomputed) * MatrixParameters(m);
}

double FlopsPerSquaredToken(const config::ClusterModel& m, double recomputed) {
  return 2 * (3 + recomputed) * m.layers() * m.heads() * HeadSize(m);
}

int UlyssesLimit(const config::ClusterModel& m) {
  const int kv_heads = KvHeads(m);
  int degree = 1;
  while (m.heads() % (2 * degree) == 0 && (kv_heads % (2 * degree) == 0 || 2 * degree % kv_heads == 0)) degree *= 2;
  return degree;
}

double ExchangeBytesPerToken(const config::ClusterModel& m, int degree) {
  return m.layers() * TrafficOf(HeadsOf(m), {degree, 1}, m.bytes_per_element()).all_to_all;
}

double RingBytesPerToken(const config::ClusterModel& m, int degree, int rings) {
  return m.layers() * TrafficOf(HeadsOf(m), {degree / rings, rings}, m.bytes_per_element()).ring;
}

double LinkRate(const config::Cluster& c, int degree) {
  const int inside = InNode(c, degree);
  const double others = degree - 1.0, within = (inside - 1) / others, between = (degree - inside) / others;
  return 1 / std::max(within / IntraRate(c), between / InterRate(c));
}

double RingRate(const config::Cluster& c, int ranks) {
  const double node = InterRate(c) * c.ranks_per_node();
  return ranks <= c.ranks_per_node() ? IntraRate(c) : std::min(IntraRate(c), node);
}

absl::StatusOr<ClusterCosts> DeriveCosts(const config::Cluster& c, int ranks) {
  const int node = c.ranks_per_node();
  if (ranks < 1 || ranks % node != 0) {
    const int below = std::max(ranks, 0) / node * node;
    return absl::InvalidArgumentError(absl::StrCat(ranks, " ranks are no whole number of nodes of ", node,
                                                   "; nearest valid: ", below > 0 ? absl::StrCat(below, " or ") : "",
                                                   below + node));
  }
  if (ranks > kMostRanks)
    return absl::InvalidArgumentError(absl::StrCat(ranks, " ranks; they are at most ", kMostRanks));
  const auto& m = c.model();
  const auto& compute = c.compute();
  const auto& states = c.states();
  ClusterCosts costs;
  SequenceCostModel& model = costs.model;
  if (compute.has_peak_tflops()) {
    const double peak = compute.peak_tflops() * 1e12;
    model.quadratic = FlopsPerSquaredToken(m, compute.recomputed()) / (peak * compute.attention_efficiency());
    model.linear = FlopsPerToken(m, compute.recomputed()) / (peak * compute.efficiency());
  } else {
    model.quadratic = compute.quadratic_ms() * 1e-3;
    model.linear = compute.linear_ms() * 1e-3;
  }

  costs.parameters = ParameterCount(m);
  // Rings: what leaves a rank of a gather or a reduction.
  const double pass =
      ranks > 1 ? costs.parameters * (ranks - 1) / ranks / RingRate(c, ranks) * (1 - states.overlap()) : 0;
  const double weights = pass * states.weight_bytes(), gradients = pass * states.gradient_bytes();
  if (states.zero() == 0) costs.step = 2 * gradients;
  if (states.zero() == 1) costs.step = gradients + weights;
  if (states.zero() == 2) costs.step = weights;
  if (compute.has_fixed_ms()) {
    model.fixed = compute.fixed_ms() * 1e-3;
  } else {
    if (states.zero() == 2) costs.traffic = gradients;
    if (states.zero() == 3) costs.traffic = 2 * weights + gradients;
    model.fixed = compute.launch_ms() * 1e-3 + costs.traffic;
  }
  // Four exchanges of a layer, forward and backward. Groups of one rank have none; they are charged them all the same,
  // for a micro-batch lasts as long as its longest group.
  costs.latency = 8.0 * m.layers() * c.links().latency_us() * 1e-6;
  model.fixed += costs.latency;

  model.max_degree = m.ring() ? model.max_degree : UlyssesLimit(m);
  // The model has one number of bytes for all degrees: where repeated heads, the part that stays or rings change them,
  // rates carry it.
  const int ulysses = std::min(2, UlyssesLimit(m));
  const SequenceTraffic of_two = TrafficOf(HeadsOf(m), {ulysses, 2 / ulysses}, m.bytes_per_element());
  model.exchange_bytes_per_token = m.layers() * (of_two.all_to_all + of_two.ring);
  for (int degree = 2; degree <= model.LargestDegree(ranks); degree *= 2)
    model.bandwidth.push_back(model.exchange_bytes_per_token / ExchangeSeconds(c, degree));

  const auto& memory = c.memory();
  constexpr double kUsable = 0.8, kActivationBytes = 34;
  costs.usable = kGiB * (memory.has_usable_gib() ? memory.usable_gib() : kUsable * memory.gib_per_rank());
  costs.states = costs.parameters * StateBytes(states, ranks);
  costs.activation = memory.has_activation_mib_per_token() ? memory.activation_mib_per_token() * kMiB
                                                           : kActivationBytes * m.layers() * m.width();
  const double tokens = (costs.usable - costs.states) / costs.activation;
  if (tokens < 1) {
    const double least = costs.parameters * StateBytes(states, 1 << 30);  // of any number of ranks
    std::string remedy = "; no number of ranks makes that fit: take a higher ZeRO stage";
    if (least + costs.activation < costs.usable) {
      const double all = costs.parameters * (StateBytes(states, 1)) - least;
      const auto enough = std::ceil(all / (costs.usable - least - costs.activation) / node) * node;
      remedy = absl::StrFormat("; take at least %.0f ranks", enough);
    }
    return absl::InvalidArgumentError(
        absl::StrFormat("model states on %d ranks (ZeRO %d) are %s a rank, of %s usable%s", ranks, states.zero(),
                        HumanBytes(costs.states), HumanBytes(costs.usable), remedy));
  }
  model.tokens_per_rank = static_cast<int64_t>(std::min(tokens, kMostTokens));
  model.bytes_per_token = costs.activation;
  model.longest = std::min<int64_t>(c.lengths().max_tokens(), model.LargestDegree(ranks) * model.tokens_per_rank);
  return costs;
}

}  // namespace shoal
