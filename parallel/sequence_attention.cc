#include "parallel/sequence_attention.h"

#include <glog/logging.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"
#include "runtime/ops/ops.h"

namespace shoal {
namespace {

void Await(StepContext& ctx, const WorkPtr& work) {
  if (work == nullptr) return;
  const double start = SteadySeconds();
  const absl::Status status = work->Wait();
  ctx.AddWaited(SteadySeconds() - start);
  if (!status.ok()) throw StepAborted(status);
}

// Gives back what nobody else holds.
void Drop(Tensor& x) {
  const Tensor none;
  x = none;
}

// Columns of a rank's rows that each rank of the team works on, as runs that lie side by side there. The i-th runs of
// all ranks ascend, and may overlap.
struct ColumnRun {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};
using ColumnRuns = std::vector<ColumnRun>;
int64_t Width(const ColumnRuns& columns) {
  int64_t width = 0;
  for (const ColumnRun& run : columns) width += run.size();
  return width;
}

class Team {
 public:
  Team(StepContext& ctx, const SequenceShard& shard, const AttentionHeads& heads, absl::string_view name)
      : ctx_(ctx), shard_(shard), heads_(heads), name_(name), rows_(shard.team_rows(shard.team_index())) {
    const int64_t c = heads.size;
    for (int i = 0; i < shard.spread.ulysses; ++i) {
      const HeadShare s = ShareOfHeads(heads, shard.spread.ulysses, i);
      const int64_t k = heads.heads, v = heads.heads + heads.key_heads;
      fused_.push_back({{s.q_begin * c, s.q_end * c},
                        {(k + s.k_begin) * c, (k + s.k_end) * c},
                        {(v + s.k_begin) * c, (v + s.k_end) * c}});
      queries_.push_back({{s.q_begin * c, s.q_end * c}});
    }
    own_ = ShareOfHeads(heads, shard.spread.ulysses, shard.team_rank());
  }

  bool exchanges() const { return shard_.spread.ulysses > 1; }
  int64_t rows() const { return rows_; }
  const HeadShare& own() const { return own_; }
  const std::vector<ColumnRuns>& fused() const { return fused_; }
  const std::vector<ColumnRuns>& queries() const { return queries_; }
  int64_t fused_width() const { return (own_.q() + 2 * own_.k()) * heads_.size; }
  ops::AttentionOptions options() const {
    const int64_t group = heads_.heads / heads_.key_heads;
    return {.scale = heads_.scale, .kv_group = group, .first_head = own_.q_begin - own_.k_begin * group};
  }
  // Elements that a rank receives of all columns of its rows, those of key heads of several ranks several times.
  int64_t Received(const std::vector<ColumnRuns>& columns) const {
    int64_t width = 0;
    for (const ColumnRuns& of : columns) width += Width(of);
    return width * shard_.own_rows();
  }

  // Rows of this rank, all columns -> rows of the team, this rank's columns.
  void Scatter(const std::vector<ColumnRuns>& columns, const Tensor& local, const Tensor& to, absl::string_view what) {
    const int64_t tokens = local.dim(0);
    const Tensor packed = ctx_.Live({Received(columns)}, local.dtype());
    std::vector<int64_t> sent;
    int64_t at = 0;
    for (const ColumnRuns& of : columns) {
      const Tensor block = packed.Rows(at, at + tokens * Width(of)).View({tokens, Width(of)});
      int64_t column = 0;
      for (const ColumnRun& run : of) {
        ops::Copy(ctx_.ops(), local.Slice(1, run.begin, run.end), block.Slice(1, column, column + run.size()));
        column += run.size();
      }
      sent.push_back(block.size());
      at += block.size();
    }
    Exchange(packed, sent, to, RowsTimes(Width(columns[static_cast<size_t>(shard_.team_rank())])), what);
  }

  // The reverse; what several ranks have of a column is summed. Receives into `buffer`, of Received(columns) elements.
  void Gather(const std::vector<ColumnRuns>& columns, const Tensor& from, const Tensor& buffer,
              absl::string_view what) {
    std::vector<int64_t> received;
    for (const ColumnRuns& of : columns) received.push_back(shard_.own_rows() * Width(of));
    Exchange(from, RowsTimes(Width(columns[static_cast<size_t>(shard_.team_rank())])), buffer, received, what);
  }
  void Unpack(const std::vector<ColumnRuns>& columns, const Tensor& buffer, const Tensor& local) {
    const int64_t tokens = local.dim(0);
    std::vector<int64_t> done(columns[0].size(), 0);  // columns before this one have been written, by run
    int64_t at = 0;
    for (const ColumnRuns& of : columns) {
      const Tensor block = buffer.Rows(at, at + tokens * Width(of)).View({tokens, Width(of)});
      at += block.size();
      int64_t column = 0;
      for (size_t i = 0; i < of.size(); ++i) {
        const int64_t shared = std::clamp<int64_t>(done[i] - of[i].begin, 0, of[i].size());
        const Tensor in = block.Slice(1, column, column + of[i].size());
        const Tensor out = local.Slice(1, of[i].begin, of[i].end);
        if (shared > 0) {
          const Tensor sum = out.Slice(1, 0, shared);
          ops::Add(ctx_.ops(), sum, in.Slice(1, 0, shared), sum);
        }
        if (shared < of[i].size()) {
          ops::Copy(ctx_.ops(), in.Slice(1, shared, of[i].size()), out.Slice(1, shared, of[i].size()));
        }
        done[i] = of[i].end;
        column += of[i].size();
      }
    }
  }

  // delta [H, T_l] -> [h, R].
  Tensor ScatterDelta(const Tensor& local) {
    if (!exchanges()) return local;
    std::vector<int64_t> sent;
    for (const ColumnRuns& of : queries_) sent.push_back(Width(of) / heads_.size * shard_.own_rows());
    const auto& of_ranks = shard_.rows[static_cast<size_t>(shard_.team_index())];
    const Tensor blocks = ctx_.Live({own_.q() * rows_}, local.dtype());
    const Tensor flat = local.View({local.size()});
    Exchange(flat, sent, blocks, RowsTimes(own_.q()), "delta");
    const Tensor delta = ctx_.Live({own_.q(), rows_}, local.dtype());
    int64_t at = 0, first = 0;
    for (const int64_t rows : of_ranks) {
      if (rows > 0) {
        ops::Copy(ctx_.ops(), blocks.Rows(at, at + own_.q() * rows).View({own_.q(), rows}),
                  delta.Slice(1, first, first + rows));
      }
      at += own_.q() * rows;
      first += rows;
    }
    return delta;
  }

  // [rows, (h + 2k) C] as heads.
  struct Heads {
    Tensor q, k, v;
  };
  Heads Split(const Tensor& fused) const {
    const int64_t q = own_.q(), k = own_.k();
    const Tensor heads = fused.View({fused.dim(0), q + 2 * k, heads_.size});
    return {heads.Slice(1, 0, q), heads.Slice(1, q, q + k), heads.Slice(1, q + k, q + 2 * k)};
  }

 private:
  std::vector<int64_t> RowsTimes(int64_t width) const {
    std::vector<int64_t> counts = shard_.rows[static_cast<size_t>(shard_.team_index())];
    for (int64_t& count : counts) count *= width;
    return counts;
  }
  void Exchange(const Tensor& in, absl::Span<const int64_t> sent, const Tensor& out, absl::Span<const int64_t> received,
                absl::string_view what) {
    if (ctx_.dry_run()) return;
    const std::string tag = absl::StrCat(name_, " ", what);
    Await(ctx_, shard_.team->AllToAllV(in, sent, out, received, {.tag = tag}));
  }

  StepContext& ctx_;
  const SequenceShard& shard_;
  const AttentionHeads& heads_;
  absl::string_view name_;
  int64_t rows_;
  HeadShare own_;
  std::vector<ColumnRuns> fused_, queries_;
};

// Keys and values of the teams, going round: in step s this rank has those of team (own - s). Their gradients follow
// them, and end where they belong.
//
// Buffers of everything that goes round would be most of a rank's memory, so it goes in chunks, one after the other: of
// a few key heads, and of a share of the rows where one head is still much. A run of rows is cut in equal shares, so
// that each chunk is as much work for one team as for another.
class Ring {
 public:
  Ring(StepContext& ctx, const SequenceShard& shard, const Team& team, const AttentionHeads& heads,
       absl::string_view name)
      : ctx_(ctx),
        shard_(shard),
        name_(name),
        options_(team.options()),
        heads_(team.own().q()),
        teams_(shard.spread.ring),
        size_(heads.size) {
    int64_t rows = 0;
    for (int t = 0; t < teams_; ++t) rows = std::max(rows, shard.team_rows(t));
    const int64_t k = team.own().k();
    const auto [slabs, shares] = shard.chunks.Cut(k, 2 * rows * size_ * DTypeBytes(ctx.compute()));
    shares_ = static_cast<int>(shares);
    for (int64_t i = 0; i < slabs; ++i) {
      for (int share = 0; share < shares_; ++share) chunks_.push_back({k * i / slabs, k * (i + 1) / slabs, share});
    }
    for (const Chunk& chunk : chunks_) {
      for (int t = 0; t < teams_; ++t) most_ = std::max(most_, Rows(chunk, t) * chunk.row(size_));
    }
  }

  void Forward(const Team::Heads& own, const Tensor& out, const Tensor& lse) {
    ops::Fill(ctx_.ops(), out, 0);
    ops::Fill(ctx_.ops(), lse, -std::numeric_limits<float>::infinity());
    Pass keys(*this, own);
    for (const Chunk& chunk : chunks_) {
      const auto [first, last] = Queries(chunk);
      for (int s = 0; s < teams_; ++s) {
        keys.Begin(chunk, s);
        ops::AttentionPartsFwd(ctx_.ops(), ctx_.arena(), own.q.Slice(1, first, last), keys.k(), keys.v(),
                               Parts(chunk, s), out.Slice(1, first, last), lse.Rows(first, last), Options(chunk));
        keys.End();
      }
    }
  }

  // Into dq [R, h, C] of f32 (f64) and dk, dv [R, k, C]; all may be row-strided.
  void Backward(const Team::Heads& own, const Tensor& dout, const Tensor& delta, const Tensor& lse, const Tensor& dq,
                const Tensor& dk, const Tensor& dv) {
    ops::Fill(ctx_.ops(), dq, 0);
    Pass keys(*this, own);
    const auto made = [&] { return ctx_.Live({most_}, ctx_.stats_dtype()); };
    Tensor here = made(), sent = made(), came = made();
    WorkPtr sending, coming;
    const Chunk* before = nullptr;  // whose gradients are on the last leg of their way
    const auto arrive = [&] {
      Await(ctx_, std::exchange(coming, nullptr));
      const auto [from_k, from_v] = Split(*before, Of(came, *before, 0));
      Unpack(*before, from_k, dk);
      Unpack(*before, from_v, dv);
    };
    for (const Chunk& chunk : chunks_) {
      const auto [first, last] = Queries(chunk);
      for (int s = 0; s < teams_; ++s) {
        keys.Begin(chunk, s);
        const Tensor sum = Of(here, chunk, s);
        ops::Fill(ctx_.ops(), sum, 0);
        const auto [sum_k, sum_v] = Split(chunk, sum);
        ops::AttentionPartsBwd(ctx_.ops(), ctx_.arena(), dout.Slice(1, first, last), own.q.Slice(1, first, last),
                               keys.k(), keys.v(), delta.Rows(first, last), lse.Rows(first, last), Parts(chunk, s),
                               dq.Slice(1, first, last), sum_k, sum_v, Options(chunk));
        keys.End();
        if (s > 0) {
          Await(ctx_, std::exchange(coming, nullptr));
          ops::Add(ctx_.ops(), Of(came, chunk, s), sum, sum);
        } else if (before != nullptr) {
          arrive();
        }
        Await(ctx_, std::exchange(sending, nullptr));
        std::swap(here, sent);
        if (ctx_.dry_run()) continue;
        const std::string tag = absl::StrCat(name_, " dkv");
        sending = shard_.group->Send(Of(sent, chunk, s), Neighbour(1), {.tag = tag});
        coming = shard_.group->Recv(Of(came, chunk, s + 1), Neighbour(-1), {.tag = tag});
      }
      before = &chunk;
    }
    arrive();
    Await(ctx_, sending);
  }

 private:
  struct Chunk {
    int64_t k_begin = 0, k_end = 0;                                           // heads of this rank's
    int share = 0;                                                            // of shares_
    int64_t row(int64_t size) const { return 2 * (k_end - k_begin) * size; }  // elements of a row, keys and values
  };

  int TeamAt(int step) const { return (shard_.team_index() - step % teams_ + teams_) % teams_; }
  int Neighbour(int by) const {
    const int team = (shard_.team_index() + by + teams_) % teams_;
    return team * shard_.spread.ulysses + shard_.team_rank();
  }
  // Heads of this rank's queries that use the chunk's keys, and how.
  std::pair<int64_t, int64_t> Queries(const Chunk& chunk) const {
    const int64_t first = chunk.k_begin * options_.kv_group - options_.first_head;
    const int64_t last = chunk.k_end * options_.kv_group - options_.first_head;
    return {std::max<int64_t>(first, 0), std::min(last, heads_)};
  }
  ops::AttentionOptions Options(const Chunk& chunk) const {
    ops::AttentionOptions options = options_;
    options.first_head = Queries(chunk).first + options_.first_head - chunk.k_begin * options_.kv_group;
    return options;
  }
  // What a chunk has of a run: rows [first, second) of it. Runs that are too short to be cut go whole, in turn.
  std::pair<int64_t, int64_t> ShareOf(const Chunk& chunk, const SequenceShard::Run& run) const {
    if (run.size() >= shard_.chunks.rows * shares_)
      return {run.size() * chunk.share / shares_, run.size() * (chunk.share + 1) / shares_};
    return {0, run.sequence % shares_ == chunk.share ? run.size() : 0};
  }
  int64_t Rows(const Chunk& chunk, int team) const {
    int64_t rows = 0;
    for (const auto& run : shard_.team_runs[static_cast<size_t>(team)]) {
      const auto [begin, end] = ShareOf(chunk, run);
      rows += end - begin;
    }
    return rows;
  }
  // The part of a buffer that the step's rows take, flat.
  Tensor Of(const Tensor& buffer, const Chunk& chunk, int step) const {
    return buffer.Rows(0, Rows(chunk, TeamAt(step)) * chunk.row(size_));
  }
  // Its keys and its values: [rows, heads of the chunk, C].
  std::pair<Tensor, Tensor> Split(const Chunk& chunk, const Tensor& flat) const {
    const int64_t k = chunk.k_end - chunk.k_begin;
    const Tensor heads = flat.View({flat.size() / chunk.row(size_), 2 * k, size_});
    return {heads.Slice(1, 0, k), heads.Slice(1, k, 2 * k)};
  }
  // Between the rows of this rank's team, all of its heads, and a chunk of them.
  void Pack(const Chunk& chunk, const Tensor& own, const Tensor& packed) const { Move(chunk, own, packed, true); }
  void Unpack(const Chunk& chunk, const Tensor& packed, const Tensor& own) const { Move(chunk, own, packed, false); }
  void Move(const Chunk& chunk, const Tensor& own, const Tensor& packed, bool pack) const {
    int64_t row = 0, at = 0;
    for (const auto& run : shard_.team_runs[static_cast<size_t>(shard_.team_index())]) {
      const auto [begin, end] = ShareOf(chunk, run);
      if (begin < end) {
        const Tensor whole = own.Rows(row + begin, row + end).Slice(1, chunk.k_begin, chunk.k_end);
        const Tensor part = packed.Rows(at, at + end - begin);
        ops::Copy(ctx_.ops(), pack ? whole : part, pack ? part : whole);
      }
      row += run.size();
      at += end - begin;
    }
  }

  // Own queries and the chunk's keys of a step, sequence by sequence.
  std::vector<ops::AttentionPart> Parts(const Chunk& chunk, int step) const {
    const auto& queries = shard_.team_runs[static_cast<size_t>(shard_.team_index())];
    const auto& keys = shard_.team_runs[static_cast<size_t>(TeamAt(step))];
    std::vector<ops::AttentionPart> parts;
    int64_t q_row = 0, first_row = 0;
    size_t first = 0;
    const auto rows = [&](size_t i) {
      const auto [begin, end] = ShareOf(chunk, keys[i]);
      return end - begin;
    };
    for (const auto& q : queries) {
      while (first < keys.size() && keys[first].sequence < q.sequence) first_row += rows(first++);
      int64_t k_row = first_row;
      for (size_t i = first; i < keys.size() && keys[i].sequence == q.sequence; k_row += rows(i++)) {
        const int64_t position = keys[i].begin + ShareOf(chunk, keys[i]).first;
        if (rows(i) == 0 || position >= q.end) continue;
        parts.push_back({q_row, q.size(), q.begin, k_row, rows(i), position});
      }
      q_row += q.size();
    }
    return parts;
  }

  // The keys and values on their way; the next ones come while this step's are used.
  class Pass {
   public:
    Pass(Ring& ring, const Team::Heads& own) : ring_(ring), own_(own) {
      for (Tensor& buffer : buffers_) buffer = ring.ctx_.Live({ring.most_}, ring.ctx_.compute());
    }
    void Begin(const Chunk& chunk, int step) {
      const Tensor here = ring_.Of(buffers_[0], chunk, step);
      std::tie(k_, v_) = ring_.Split(chunk, here);
      if (step == 0) {
        ring_.Pack(chunk, own_.k, k_);
        ring_.Pack(chunk, own_.v, v_);
      }
      if (step + 1 == ring_.teams_ || ring_.ctx_.dry_run()) return;
      const std::string tag = absl::StrCat(ring_.name_, " kv");
      sending_ = ring_.shard_.group->Send(here, ring_.Neighbour(1), {.tag = tag});
      coming_ = ring_.shard_.group->Recv(ring_.Of(buffers_[1], chunk, step + 1), ring_.Neighbour(-1), {.tag = tag});
    }
    void End() {
      Await(ring_.ctx_, std::exchange(coming_, nullptr));
      Await(ring_.ctx_, std::exchange(sending_, nullptr));
      std::swap(buffers_[0], buffers_[1]);
    }
    const Tensor& k() const { return k_; }
    const Tensor& v() const { return v_; }

   private:
    Ring& ring_;
    const Team::Heads& own_;
    Tensor k_, v_, buffers_[2];
    WorkPtr sending_, coming_;
  };

  StepContext& ctx_;
  const SequenceShard& shard_;
  absl::string_view name_;
  ops::AttentionOptions options_;
  int64_t heads_;  // query heads of this rank
  int teams_, shares_ = 1;
  int64_t size_, most_ = 0;  // elements of a head; of a chunk
  std::vector<Chunk> chunks_;
};

}  // namespace

HeadShare ShareOfHeads(const AttentionHeads& heads, int ulysses, int team_rank) {
  const int64_t group = heads.heads / heads.key_heads;
  HeadShare share{.q_begin = heads.heads * team_rank / ulysses, .q_end = heads.heads * (team_rank + 1) / ulysses};
  CHECK_GT(share.q(), 0) << heads.heads << " heads over " << ulysses << " ranks";
  share.k_begin = share.q_begin / group;
  share.k_end = (share.q_end - 1) / group + 1;
  return share;
}

SequenceAttentionKept SequenceAttentionFwd(StepContext& ctx, const SequenceShard& shard, const AttentionHeads& heads,
                                           absl::string_view name, const Tensor& fused) {
  Team team(ctx, shard, heads, name);
  const int64_t rows = team.rows(), tokens = fused.dim(0);
  SequenceAttentionKept kept;
  kept.gathered = fused;
  if (team.exchanges()) {
    const int64_t elements = rows * team.fused_width();
    kept.block = ctx.Frame({std::max(elements, team.Received(team.fused()))}, ctx.compute());
    kept.gathered = kept.block.Rows(0, elements).View({rows, team.fused_width()});
  }
  kept.lse = ctx.Frame({team.own().q(), rows}, ctx.stats_dtype());
  kept.attended = ctx.Frame({tokens, heads.heads * heads.size}, ctx.compute());
  if (team.exchanges()) team.Scatter(team.fused(), fused, kept.gathered, "qkv");
  const Team::Heads h = team.Split(kept.gathered);
  const Shape shape = {rows, team.own().q(), heads.size};
  const Tensor out = team.exchanges() ? ctx.Live(shape, ctx.compute()) : kept.attended.View(shape);
  if (shard.spread.ring == 1) {
    ops::AttentionVarlenFwd(ctx.ops(), ctx.arena(), h.q, h.k, h.v, shard.cu_seqlens(), out, kept.lse, team.options());
  } else {
    // Steps add to the result, which is rounded once.
    const Tensor sum = ctx.compute() == ctx.stats_dtype() ? out : ctx.Live(shape, ctx.stats_dtype());
    Ring(ctx, shard, team, heads, name).Forward(h, sum, kept.lse);
    if (ctx.compute() != ctx.stats_dtype()) ops::Copy(ctx.ops(), sum, out);
  }
  if (team.exchanges()) {
    const Tensor buffer = ctx.Live({team.Received(team.queries())}, ctx.compute());
    team.Gather(team.queries(), out.View({out.size()}), buffer, "attended");
    team.Unpack(team.queries(), buffer, kept.attended);
  }
  return kept;
}

Tensor SequenceAttentionBwd(StepContext& ctx, const SequenceShard& shard, const AttentionHeads& heads,
                            absl::string_view name, SequenceAttentionKept kept, Tensor dattended) {
  Team team(ctx, shard, heads, name);
  const int64_t rows = team.rows(), tokens = dattended.dim(0);
  Tensor delta = ctx.Live({heads.heads, tokens}, ctx.stats_dtype());
  {
    const Shape all_heads = {tokens, heads.heads, heads.size};
    ops::AttentionDelta(ctx.ops(), dattended.View(all_heads), kept.attended.View(all_heads), delta);
  }
  delta = team.ScatterDelta(delta);
  const Shape shape = {rows, team.own().q(), heads.size};
  Tensor dout = dattended;
  if (team.exchanges()) {
    dout = ctx.Live(shape, ctx.compute());
    team.Scatter(team.queries(), dattended, dout.View({rows, team.own().q() * heads.size}), "dattended");
  }
  dout = dout.View(shape);
  Drop(dattended);
  Tensor dgathered = ctx.Live({rows, team.fused_width()}, ctx.compute());
  {
    const Team::Heads h = team.Split(kept.gathered), d = team.Split(dgathered);
    if (shard.spread.ring == 1) {
      ops::AttentionVarlenBwdDelta(ctx.ops(), ctx.arena(), dout, h.q, h.k, h.v, delta, kept.lse, shard.cu_seqlens(),
                                   d.q, d.k, d.v, team.options());
    } else {
      const int64_t q_columns = team.own().q() * heads.size;
      const bool sums_in_place = ctx.compute() == ctx.stats_dtype();
      const Tensor dq = sums_in_place ? d.q : ctx.Live(shape, ctx.stats_dtype());
      Ring(ctx, shard, team, heads, name).Backward(h, dout, delta, kept.lse, dq, d.k, d.v);
      if (!sums_in_place) ops::Copy(ctx.ops(), dq.View({rows, q_columns}), dgathered.Slice(1, 0, q_columns));
    }
  }
  if (!team.exchanges()) return dgathered;
  Drop(dout);
  Drop(delta);
  const Tensor buffer = kept.block.Rows(0, team.Received(team.fused()));
  team.Gather(team.fused(), dgathered.View({dgathered.size()}), buffer, "dqkv");
  Drop(dgathered);
  const Tensor dfused = ctx.Live({tokens, heads.columns()}, ctx.compute());
  team.Unpack(team.fused(), buffer, dfused);
  return dfused;
}

}  // namespace shoal
