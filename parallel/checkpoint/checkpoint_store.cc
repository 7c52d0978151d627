#include "parallel/checkpoint/checkpoint_store.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "parallel/checkpoint/manifest.h"
#include "parallel/checkpoint/safetensors.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using nlohmann::json;

struct Piece {
  std::string name;
  Shape shape;
  int64_t begin = 0, end = 0;
  Tensor tensor;  // of the snapshot
  std::string Key() const { return absl::StrCat(name, "@", begin); }
};

std::string FolderName(int64_t step) { return absl::StrFormat("step-%08d", step); }
std::string RankFile(int rank) { return absl::StrFormat("rank-%05d.safetensors", rank); }

// Reads state out.
class Collector : public StateVisitor {
 public:
  void TrueShape(absl::string_view name, const Shape& shape) override { shapes[std::string(name)] = shape; }
  void Shard(absl::string_view name, const Tensor& local, const Box& box) override {
    Shape shape = box.global;
    if (const auto at = shapes.find(std::string(name)); at != shapes.end()) shape = at->second;
    pieces.push_back({std::string(name), shape, box.offset[0], box.offset[0] + box.extent[0], local});
  }
  void Scalar(absl::string_view name, int64_t& value) override { manifest.integers[std::string(name)] = value; }
  void Scalar(absl::string_view name, double& value) override { manifest.reals[std::string(name)] = value; }
  void Blob(absl::string_view name, std::string& value) override { manifest.blobs[std::string(name)] = value; }
  std::vector<Piece> pieces;
  std::map<std::string, Shape> shapes;
  Manifest manifest;
};

// Writes state in, from a checkpoint's files. The first error stays.
class Loader : public StateVisitor {
 public:
  Loader(std::string folder, Manifest manifest) : folder_(std::move(folder)), manifest_(std::move(manifest)) {}
  void TrueShape(absl::string_view name, const Shape& shape) override {
    const auto at = manifest_.tensors.find(std::string(name));
    if (at != manifest_.tensors.end() && at->second.shape != shape) {
      Fail(absl::StrCat("tensor '", name, "' has shape ", ShapeString(at->second.shape), " there and ",
                        ShapeString(shape), " in this job: a checkpoint of another model"));
    }
  }
  void Shard(absl::string_view name, const Tensor& local, const Box& box) override {
    if (!status.ok()) return;
    const auto at = manifest_.tensors.find(std::string(name));
    if (at == manifest_.tensors.end())
      return Fail(absl::StrCat("tensor '", name, "' is not in it: a checkpoint of another model or optimizer"));
    seen_.insert(at->first);
    for (const ManifestPiece& piece : at->second.pieces) {
      const Box there{box.global, {piece.begin}, {piece.end - piece.begin}};
      if (Intersect(there, box).empty()) continue;
      auto source = Verified(at->first, piece);
      if (!source.ok()) return Fail(std::string(source.status().message()));
      CopyOverlap(*source, there, local, box);
    }
  }
  void Scalar(absl::string_view name, int64_t& value) override { Take(manifest_.integers, name, value); }
  void Scalar(absl::string_view name, double& value) override { Take(manifest_.reals, name, value); }
  void Blob(absl::string_view name, std::string& value) override { Take(manifest_.blobs, name, value); }
  bool Has(absl::string_view name) const override {
    const std::string key(name);
    return manifest_.tensors.contains(key) || manifest_.integers.contains(key) || manifest_.reals.contains(key) ||
           manifest_.blobs.contains(key);
  }
  absl::Status status;

 private:
  template <class T>
  void Take(const std::map<std::string, T>& from, absl::string_view name, T& value) {
    const auto at = from.find(std::string(name));
    if (at == from.end())
      Fail(absl::StrCat("'", name, "' is not in it"));
    else
      value = at->second;
  }
  absl::StatusOr<Tensor> Verified(const std::string& name, const ManifestPiece& piece) {
    auto& file = files_[piece.file];
    if (file == nullptr) {
      SHOAL_ASSIGN_OR_RETURN(file, SafetensorsFile::Open(folder_ + "/" + piece.file));
    }
    const auto entry = file->entries().find(piece.key);
    if (entry == file->entries().end())
      return absl::DataLossError(absl::StrCat("tensor '", name, "' is missing from ", piece.file));
    const Tensor view = file->View(entry->second);
    if (view.size() != piece.end - piece.begin)
      return absl::DataLossError(absl::StrCat("tensor '", name, "' in ", piece.file, " has ", view.size(),
                                              " elements, the manifest says ", piece.end - piece.begin));
    if (checked_.insert(piece.file + "\n" + piece.key).second &&
        XXH3_64bits(view.raw(), static_cast<size_t>(view.bytes())) != piece.checksum) {
      return absl::DataLossError(
          absl::StrCat("tensor '", name, "' in ", piece.file, " does not match its checksum: the file is damaged"));
    }
    return view;
  }
  void Fail(const std::string& what) {
    if (status.ok()) status = absl::DataLossError(absl::StrCat(folder_, ": ", what));
  }
  std::string folder_;
  Manifest manifest_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::set<std::string> seen_, checked_;
};

FileSystem& Files(FileSystem* files) { return files != nullptr ? *files : PosixFiles(); }

}  // namespace

// The state at one moment; its memory is used again by the next save.
struct CheckpointStore::Snapshot {
  Collector state;
  Tensor memory;  // u8
  Best best = Best::kNo;
};

struct CheckpointStore::Writer {
  std::thread thread;
  absl::Status status;
};

CheckpointStore::CheckpointStore(Options options, Communicator& comm)
    : options_(std::move(options)),
      comm_(comm),
      snapshot_(std::make_unique<Snapshot>()),
      writer_(std::make_unique<Writer>()) {
  options_.files = &Files(options_.files);
}
CheckpointStore::~CheckpointStore() { Wait().IgnoreError(); }

absl::Status CheckpointStore::Wait() {
  if (writer_->thread.joinable()) writer_->thread.join();
  absl::Status status = std::move(writer_->status);
  writer_->status = absl::OkStatus();
  return status;
}

absl::Status CheckpointStore::Save(int64_t step, absl::Span<Stateful* const> state, Best best) {
  const auto start = std::chrono::steady_clock::now();
  SHOAL_RETURN_IF_ERROR(Wait());
  Snapshot& s = *snapshot_;
  s.state = Collector();
  s.best = best;
  for (Stateful* one : state) one->VisitState(s.state);
  s.state.manifest.step = step;
  s.state.manifest.ranks = comm_.size();
  int64_t bytes = 0;
  for (const Piece& piece : s.state.pieces) bytes += (piece.tensor.bytes() + 63) / 64 * 64;
  if (!s.memory.defined() || s.memory.size() < bytes) {
    s.memory = Tensor();
    s.memory = Tensor::Zeros({bytes}, DType::kU8);
  }
  char* at = static_cast<char*>(s.memory.raw());
  for (Piece& piece : s.state.pieces) {
    if (piece.tensor.bytes() > 0) std::memcpy(at, piece.tensor.raw(), static_cast<size_t>(piece.tensor.bytes()));
    piece.tensor = Tensor::Borrow(at, piece.tensor.shape(), piece.tensor.dtype());
    at += (piece.tensor.bytes() + 63) / 64 * 64;
  }
  pause_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (options_.mode == Options::Mode::kSync) return Write(s);
  writer_->thread = std::thread([this] { writer_->status = Write(*snapshot_); });
  return absl::OkStatus();
}

absl::Status CheckpointStore::Write(const Snapshot& snapshot) {
  const std::string folder = options_.dir + "/" + FolderName(snapshot.state.manifest.step);
  const absl::Status status = WriteTogether(snapshot, folder);
  if (!status.ok() && comm_.rank() == 0) options_.files->RemoveAll(folder + ".tmp").IgnoreError();
  return Annotate(status, absl::StrCat("checkpoint ", folder));
}

namespace {

// All ranks learn whether all are well: the first rank's error that is not.
absl::Status Agree(Communicator& comm, const absl::Status& mine, const char* tag) {
  const std::string text = mine.ok() ? "" : absl::StrCat(static_cast<int>(mine.code()), " ", mine.message());
  SHOAL_ASSIGN_OR_RETURN(const auto all, AllGatherStrings(comm, text, {.tag = tag}));
  for (size_t r = 0; r < all.size(); ++r) {
    if (all[r].empty()) continue;
    const size_t space = all[r].find(' ');
    return absl::Status(static_cast<absl::StatusCode>(std::stoi(all[r].substr(0, space))),
                        absl::StrCat("rank ", r, ": ", all[r].substr(space + 1)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckpointStore::WriteTogether(const Snapshot& snapshot, const std::string& folder) {
  FileSystem& files = *options_.files;
  const std::string partial = folder + ".tmp";
  absl::Status mine;
  if (comm_.rank() == 0) {
    mine = files.RemoveAll(partial);
    if (mine.ok()) mine = files.MakeDirs(partial);
  }
  SHOAL_RETURN_IF_ERROR(Agree(comm_, mine, "checkpoint folder"));
  // A piece that several ranks hold is written by the first of them.
  json held = json::array();
  for (const Piece& piece : snapshot.state.pieces) held.push_back(absl::StrCat(piece.Key(), "-", piece.end));
  SHOAL_ASSIGN_OR_RETURN(const auto all_held, AllGatherStrings(comm_, held.dump(), {.tag = "checkpoint boxes"}));
  std::set<std::string> elsewhere;
  for (int r = 0; r < comm_.rank(); ++r) {
    for (const auto& key : json::parse(all_held[r])) elsewhere.insert(key.get<std::string>());
  }
  std::vector<NamedTensor> tensors;
  json entries = json::array();
  for (const Piece& piece : snapshot.state.pieces) {
    if (piece.begin == piece.end && NumElements(piece.shape) > 0) continue;
    if (elsewhere.count(absl::StrCat(piece.Key(), "-", piece.end)) > 0) continue;
    tensors.push_back({piece.Key(), piece.tensor});
    entries.push_back({piece.name, std::vector<int64_t>(piece.shape.begin(), piece.shape.end()), piece.Key(),
                       piece.begin, piece.end,
                       XXH3_64bits(piece.tensor.raw(), static_cast<size_t>(piece.tensor.bytes()))});
  }
  mine = WriteSafetensors(files, partial + "/" + RankFile(comm_.rank()), tensors);
  SHOAL_RETURN_IF_ERROR(Agree(comm_, mine, "checkpoint files"));
  SHOAL_ASSIGN_OR_RETURN(const auto all_entries,
                         AllGatherStrings(comm_, entries.dump(), {.tag = "checkpoint manifest"}));
  if (comm_.rank() == 0) {
    Manifest manifest = snapshot.state.manifest;
    for (size_t r = 0; r < all_entries.size(); ++r) {
      for (const auto& e : json::parse(all_entries[r])) {
        ManifestTensor& tensor = manifest.tensors[e[0].get<std::string>()];
        tensor.shape.clear();
        for (const auto& extent : e[1]) tensor.shape.push_back(extent.get<int64_t>());
        tensor.pieces.push_back({RankFile(static_cast<int>(r)), e[2].get<std::string>(), e[3].get<int64_t>(),
                                 e[4].get<int64_t>(), e[5].get<uint64_t>()});
      }
    }
    const std::string name = FolderName(manifest.step);
    mine = WriteFileAtomically(files, partial + "/manifest.json", ManifestText(manifest));
    if (mine.ok()) mine = files.SyncDir(partial);
    if (mine.ok() && files.Exists(folder)) mine = files.RemoveAll(folder);
    if (mine.ok()) mine = files.Rename(partial, folder);
    if (mine.ok()) mine = files.SyncDir(options_.dir);
    if (mine.ok()) mine = WriteFileAtomically(files, options_.dir + "/latest", name + "\n");
    if (mine.ok() && snapshot.best == Best::kYes)
      mine = WriteFileAtomically(files, options_.dir + "/best", name + "\n");
    if (mine.ok()) Prune(name);
  }
  return Agree(comm_, mine, "checkpoint done");
}

std::vector<std::string> ListCheckpoints(FileSystem& files, const std::string& dir) {
  std::vector<std::string> found;
  if (auto names = files.List(dir); names.ok()) {
    for (const std::string& name : *names) {
      if (absl::StartsWith(name, "step-") && !absl::EndsWith(name, ".tmp")) found.push_back(name);
    }
  }
  return found;
}

void CheckpointStore::Prune(const std::string& newest) {
  FileSystem& files = *options_.files;
  std::vector<std::string> names = ListCheckpoints(files, options_.dir);
  std::string best;
  if (auto text = files.Read(options_.dir + "/best"); text.ok()) best = std::string(absl::StripSuffix(*text, "\n"));
  for (size_t i = 0; i + static_cast<size_t>(std::max(1, options_.keep)) < names.size(); ++i) {
    if (names[i] == best || names[i] == newest) continue;
    files.RemoveAll(options_.dir + "/" + names[i]).IgnoreError();  // a leftover costs space, not results
  }
}

absl::Status CheckpointStore::LoadFrom(const std::string& folder, absl::Span<Stateful* const> state,
                                       FileSystem* files) {
  auto text = Files(files).Read(folder + "/manifest.json");
  if (!text.ok()) return absl::DataLossError(absl::StrCat(folder, ": ", text.status().message()));
  auto manifest = ParseManifest(*text);
  if (!manifest.ok()) return Annotate(manifest.status(), folder + "/manifest.json");
  Loader loader(folder, *std::move(manifest));
  for (Stateful* one : state) one->VisitState(loader);
  return loader.status;
}

absl::StatusOr<int64_t> CheckpointStore::LoadNewest(absl::Span<Stateful* const> state) {
  std::string list;
  if (comm_.rank() == 0) {
    for (const std::string& name : ListCheckpoints(*options_.files, options_.dir)) list = name + "\n" + list;
  }
  SHOAL_ASSIGN_OR_RETURN(list, BroadcastString(comm_, list, 0, {.tag = "checkpoints"}));
  if (list.empty()) return absl::NotFoundError(absl::StrCat(options_.dir, ": no checkpoint"));
  size_t at = 0;
  absl::Status last;
  while (at < list.size()) {
    const size_t end = list.find('\n', at);
    const std::string name = list.substr(at, end - at);
    at = end + 1;
    last = Agree(comm_, LoadFrom(options_.dir + "/" + name, state, options_.files), "checkpoint loaded");
    if (last.ok()) return std::stoll(name.substr(5));
    if (!absl::IsDataLoss(last)) return last;
    warnings_.push_back(absl::StrCat(last.message(), at < list.size() ? "; the one before it is tried" : ""));
  }
  return absl::DataLossError(
      absl::StrCat("no checkpoint in ", options_.dir, " is good. ", last.message(),
                   ". Remove the folder to start again, or give the job's run another --run_dir"));
}

}  // namespace shoal
