#include "parallel/checkpoint/manifest.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace shoal {

using nlohmann::json;

std::string ManifestText(const Manifest& m) {
  json tensors = json::object(), integers = json::object(), reals = json::object(), blobs = json::object();
  for (const auto& [name, tensor] : m.tensors) {
    json pieces = json::array();
    for (const ManifestPiece& p : tensor.pieces) {
      pieces.push_back({{"file", p.file},
                        {"key", p.key},
                        {"begin", p.begin},
                        {"end", p.end},
                        {"xxh3", absl::StrCat(absl::Hex(p.checksum, absl::kZeroPad16))}});
    }
    tensors[name] = {{"shape", std::vector<int64_t>(tensor.shape.begin(), tensor.shape.end())}, {"pieces", pieces}};
  }
  for (const auto& [name, value] : m.integers) integers[name] = value;
  // As bits: a checkpoint gives back what was saved, infinities too; the text beside it is for people.
  for (const auto& [name, value] : m.reals)
    reals[name] = {{"bits", std::bit_cast<uint64_t>(value)}, {"about", absl::StrCat(value)}};
  for (const auto& [name, value] : m.blobs) blobs[name] = absl::BytesToHexString(value);
  return json{{"format", "shoal checkpoint 1"}, {"step", m.step}, {"ranks", m.ranks}, {"tensors", tensors},
              {"integers", integers},           {"reals", reals}, {"blobs", blobs}}
             .dump(1) +
         "\n";
}

absl::StatusOr<Manifest> ParseManifest(absl::string_view text) {
  // Every number of a manifest is whole; one that fits no integer reads as a double, which converts to anything.
  bool whole = true;
  const json root = json::parse(
      text.begin(), text.end(),
      [&](int, json::parse_event_t event, json& value) {
        if (event == json::parse_event_t::value && value.is_number_float()) whole = false;
        return true;
      },
      false);
  if (!root.is_object()) return absl::DataLossError("is no JSON object: truncated or damaged");
  if (!whole) return absl::DataLossError("one of its numbers is no whole 64-bit number: damaged");
  if (root.value("format", json()) != "shoal checkpoint 1")
    return absl::DataLossError("its format is not 'shoal checkpoint 1'");
  Manifest m;
  try {
    m.step = root.at("step").get<int64_t>();
    m.ranks = root.at("ranks").get<int>();
    for (const auto& [name, value] : root.at("tensors").items()) {
      ManifestTensor& tensor = m.tensors[name];
      for (const auto& extent : value.at("shape")) tensor.shape.push_back(extent.get<int64_t>());
      for (const auto& p : value.at("pieces")) {
        ManifestPiece piece{p.at("file").get<std::string>(), p.at("key").get<std::string>(),
                            p.at("begin").get<int64_t>(), p.at("end").get<int64_t>(), 0};
        if (!absl::SimpleHexAtoi(p.at("xxh3").get<std::string>(), &piece.checksum))
          return absl::DataLossError(absl::StrCat("tensor '", name, "': a checksum is no hexadecimal number"));
        if (piece.file.find('/') != std::string::npos)
          return absl::DataLossError(
              absl::StrCat("tensor '", name, "': file ", piece.file, " lies outside the checkpoint"));
        tensor.pieces.push_back(std::move(piece));
      }
      std::sort(tensor.pieces.begin(), tensor.pieces.end(),
                [](const auto& a, const auto& b) { return a.begin < b.begin; });
      int64_t elements = 1, at = 0;
      for (int64_t extent : tensor.shape) {
        if (extent < 0 || (extent > 0 && elements > (int64_t{1} << 48) / extent))
          return absl::DataLossError(absl::StrCat("tensor '", name, "': shape ", ShapeString(tensor.shape)));
        elements *= extent;
      }
      for (const ManifestPiece& p : tensor.pieces) {
        if (p.begin > at || p.end < p.begin)
          return absl::DataLossError(
              absl::StrCat("tensor '", name, "': elements ", at, " to ", p.begin, " are missing"));
        at = std::max(at, p.end);
      }
      if (at != elements)
        return absl::DataLossError(
            absl::StrCat("tensor '", name, "': its pieces hold ", at, " of ", elements, " elements"));
    }
    for (const auto& [name, value] : root.at("integers").items()) m.integers[name] = value.get<int64_t>();
    for (const auto& [name, value] : root.at("reals").items())
      m.reals[name] = std::bit_cast<double>(value.at("bits").get<uint64_t>());
    for (const auto& [name, value] : root.at("blobs").items())
      m.blobs[name] = absl::HexStringToBytes(value.get<std::string>());
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat("a field is missing or of the wrong type: ", e.what()));
  }
  return m;
}

}  // namespace shoal
