#include "models/hugging_face.h"

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "models/transformer.h"
#include "parallel/checkpoint/safetensors.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace shoal {
namespace {

using config::TransformerConfig;
using nlohmann::json;

// Where a parameter of ours lies in a tensor of theirs.
struct Place {
  std::string name;
  bool transposed = false;  // theirs is [in, out] (GPT-2's Conv1D), ours [out, in]
  int64_t part = 0;         // of `parts` equal ones along theirs' out extent
  int64_t parts = 1;
};

// The part of `name` after `prefix`, split at the layer number: "blocks.3.mlp.up.weight" -> {3, "mlp.up.weight"}.
std::pair<std::string, std::string> LayerAndRest(absl::string_view name) {
  absl::ConsumePrefix(&name, "blocks.");
  const size_t dot = name.find('.');
  return {std::string(name.substr(0, dot)), std::string(name.substr(dot + 1))};
}

Place Gpt2Place(const std::string& name) {
  static const auto* const kOutside =
      new std::map<std::string, std::string>{{"tokens.weight", "transformer.wte.weight"},
                                             {"positions.weight", "transformer.wpe.weight"},
                                             {"final_norm.weight", "transformer.ln_f.weight"},
                                             {"final_norm.bias", "transformer.ln_f.bias"},
                                             {"head.weight", "lm_head.weight"}};
  if (const auto at = kOutside->find(name); at != kOutside->end()) return {at->second};
  static const auto* const kInside = new std::map<std::string, Place>{{"attention.norm", {"ln_1"}},
                                                                      {"attention.q", {"attn.c_attn", true, 0, 3}},
                                                                      {"attention.k", {"attn.c_attn", true, 1, 3}},
                                                                      {"attention.v", {"attn.c_attn", true, 2, 3}},
                                                                      {"attention.out", {"attn.c_proj", true}},
                                                                      {"mlp.norm", {"ln_2"}},
                                                                      {"mlp.up", {"mlp.c_fc", true}},
                                                                      {"mlp.down", {"mlp.c_proj", true}}};
  const auto [layer, rest] = LayerAndRest(name);
  const size_t dot = rest.rfind('.');
  Place place = kInside->at(rest.substr(0, dot));
  place.name = absl::StrCat("transformer.h.", layer, ".", place.name, rest.substr(dot));
  return place;
}

Place LlamaPlace(const std::string& name) {
  static const auto* const kOutside =
      new std::map<std::string, std::string>{{"tokens.weight", "model.embed_tokens.weight"},
                                             {"final_norm.weight", "model.norm.weight"},
                                             {"head.weight", "lm_head.weight"}};
  if (const auto at = kOutside->find(name); at != kOutside->end()) return {at->second};
  static const auto* const kInside = new std::map<std::string, std::string>{{"attention.norm", "input_layernorm"},
                                                                            {"attention.q", "self_attn.q_proj"},
                                                                            {"attention.k", "self_attn.k_proj"},
                                                                            {"attention.v", "self_attn.v_proj"},
                                                                            {"attention.out", "self_attn.o_proj"},
                                                                            {"attention.q_norm", "self_attn.q_norm"},
                                                                            {"attention.k_norm", "self_attn.k_norm"},
                                                                            {"mlp.norm", "post_attention_layernorm"},
                                                                            {"mlp.gate", "mlp.gate_proj"},
                                                                            {"mlp.up", "mlp.up_proj"},
                                                                            {"mlp.down", "mlp.down_proj"}};
  const auto [layer, rest] = LayerAndRest(name);
  const size_t dot = rest.rfind('.');
  return {absl::StrCat("model.layers.", layer, ".", kInside->at(rest.substr(0, dot)), rest.substr(dot))};
}

bool IsGpt2(const TransformerConfig& c) { return c.positions() == TransformerConfig::LEARNED; }
Place PlaceOf(const TransformerConfig& c, const std::string& name) {
  return IsGpt2(c) ? Gpt2Place(name) : LlamaPlace(name);
}

// Extents of the whole tensor of theirs that `place` is part of, given the shape of ours.
Shape TheirShape(const Place& place, const Shape& ours) {
  if (ours.size() == 1) return {ours[0] * place.parts};
  if (place.transposed) return {ours[1], ours[0] * place.parts};
  return ours;
}

enum class Way : uint8_t { kTheirsToOurs, kOursToTheirs };
// theirs = factor ours, element by element: at most a few times in a model's life. Both f32.
void CopyPart(const Place& place, const Tensor& ours, const Tensor& theirs, double factor, Way way) {
  const auto mine = ours.span<float>(), yours = theirs.span<float>();
  const auto move = [&](int64_t our, int64_t their) {
    if (way == Way::kTheirsToOurs)
      mine[our] = static_cast<float>(yours[their] / factor);
    else
      yours[their] = static_cast<float>(mine[our] * factor);
  };
  if (ours.shape().size() == 1 || !place.transposed) {
    for (int64_t i = 0; i < ours.size(); ++i) move(i, place.part * ours.size() + i);
    return;
  }
  const int64_t out = ours.dim(0), in = ours.dim(1), row = out * place.parts;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) move(o * in + i, i * row + place.part * out + o);
  }
}

// config.json, field by field, collecting all that does not fit.
class ConfigReader {
 public:
  explicit ConfigReader(const json& root) : root_(root) {}
  int32_t Whole(const char* field) {
    const auto at = root_.find(field);
    if (at == root_.end() || !at->is_number_integer() || *at < 1 || *at > (1 << 30)) {
      wrong_.push_back(absl::StrCat("'", field, "' is not a whole number of 1 or more"));
      return 1;
    }
    return at->get<int32_t>();
  }
  int32_t WholeOr(const char* field, int32_t otherwise) { return Has(field) ? Whole(field) : otherwise; }
  double Real(const json& from, const char* field, double otherwise) {
    const auto at = from.find(field);
    return at != from.end() && at->is_number() ? at->get<double>() : otherwise;
  }
  bool Flag(const char* field, bool otherwise) {
    const auto at = root_.find(field);
    return at != root_.end() && at->is_boolean() ? at->get<bool>() : otherwise;
  }
  bool Has(const char* field) const {
    const auto at = root_.find(field);
    return at != root_.end() && !at->is_null();
  }
  // The field is absent, null, or one of `allowed`.
  void OneOf(const char* field, const std::vector<json>& allowed) {
    if (!Has(field)) return;
    std::vector<std::string> texts;
    for (const json& value : allowed) {
      if (root_.at(field) == value) return;
      texts.push_back(value.dump());
    }
    wrong_.push_back(
        absl::StrCat("'", field, "' is ", root_.at(field).dump(), "; these layers do ", absl::StrJoin(texts, " or ")));
  }
  void Wrong(std::string what) { wrong_.push_back(std::move(what)); }
  absl::Status Result(const std::string& path) const {
    if (wrong_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", absl::StrJoin(wrong_, "; ")));
  }

 private:
  const json& root_;
  std::vector<std::string> wrong_;
};

void ReadGpt2(ConfigReader& from, const json& root, TransformerConfig& c) {
  c.set_preset(TransformerConfig::GPT2);
  c.set_layers(from.Whole("n_layer"));
  c.set_width(from.Whole("n_embd"));
  c.set_heads(from.Whole("n_head"));
  c.set_kv_heads(c.heads());
  c.set_ffn(from.WholeOr("n_inner", 4 * c.width()));
  c.set_max_positions(from.Whole("n_positions"));
  c.set_norm(TransformerConfig::LAYER_NORM);
  c.set_positions(TransformerConfig::LEARNED);
  c.set_activation(TransformerConfig::GELU);
  c.set_biases(true);
  c.set_tied_head(from.Flag("tie_word_embeddings", true));
  c.set_norm_epsilon(from.Real(root, "layer_norm_epsilon", 1e-5));
  from.OneOf("activation_function", {"gelu_new", "gelu_pytorch_tanh"});
  from.OneOf("scale_attn_weights", {true});
  from.OneOf("scale_attn_by_inverse_layer_idx", {false});
}

void ReadLlama(ConfigReader& from, const json& root, TransformerConfig& c) {
  c.set_preset(TransformerConfig::LLAMA);
  c.set_layers(from.Whole("num_hidden_layers"));
  c.set_width(from.Whole("hidden_size"));
  c.set_heads(from.Whole("num_attention_heads"));
  c.set_kv_heads(from.WholeOr("num_key_value_heads", c.heads()));
  c.set_ffn(from.Whole("intermediate_size"));
  c.set_max_positions(from.Whole("max_position_embeddings"));
  c.set_norm(TransformerConfig::RMS_NORM);
  c.set_positions(TransformerConfig::ROPE);
  c.set_activation(TransformerConfig::SWIGLU);
  c.set_tied_head(from.Flag("tie_word_embeddings", false));
  c.set_norm_epsilon(from.Real(root, "rms_norm_eps", 1e-6));
  c.set_qk_norm(root.at("model_type") == "qwen3");
  const bool biases = from.Flag("attention_bias", false);
  c.set_biases(biases);
  if (!c.qk_norm()) from.OneOf("mlp_bias", {biases});
  if (c.qk_norm()) {
    from.OneOf("attention_bias", {false});
    from.OneOf("use_sliding_window", {false});
  }
  from.OneOf("hidden_act", {"silu"});
  if (from.Has("head_dim") && int64_t{from.Whole("head_dim")} * c.heads() != c.width())
    from.Wrong("'head_dim' is not hidden_size / num_attention_heads, which these layers have");
  // transformers 5 keeps theta and scaling in one group; before, they were fields of their own.
  const json rope = root.value("rope_parameters", json::object());
  c.set_rope_theta(from.Real(rope, "rope_theta", from.Real(root, "rope_theta", 10000)));
  if (rope.is_object() && rope.value("rope_type", json("default")) != "default")
    from.Wrong(
        absl::StrCat("'rope_parameters.rope_type' is ", rope["rope_type"].dump(), "; these layers do \"default\""));
  if (from.Has("rope_scaling") && root.at("rope_scaling").value("rope_type", json("default")) != "default")
    from.Wrong("'rope_scaling' is set; these layers do unscaled rotary positions");
}

absl::StatusOr<TransformerConfig> ReadConfig(const std::string& path) {
  SHOAL_ASSIGN_OR_RETURN(const std::string text, PosixFiles().Read(path));
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object()) return absl::DataLossError(absl::StrCat(path, " is no JSON object: truncated or damaged"));
  TransformerConfig c;
  ConfigReader from(root);
  const json type = root.value("model_type", json());
  c.set_vocabulary(from.Whole("vocab_size"));
  if (type == "gpt2")
    ReadGpt2(from, root, c);
  else if (type == "llama" || type == "qwen3")
    ReadLlama(from, root, c);
  else
    from.Wrong(absl::StrCat("'model_type' is ", type.dump(), "; Shoal reads \"gpt2\", \"llama\" and \"qwen3\""));
  SHOAL_RETURN_IF_ERROR(from.Result(path));
  return c;
}

json ConfigJson(const TransformerConfig& c) {
  if (IsGpt2(c)) {
    return {{"architectures", {"GPT2LMHeadModel"}},
            {"model_type", "gpt2"},
            {"n_layer", c.layers()},
            {"n_embd", c.width()},
            {"n_head", c.heads()},
            {"n_inner", c.ffn()},
            {"n_positions", c.max_positions()},
            {"vocab_size", c.vocabulary()},
            {"layer_norm_epsilon", c.norm_epsilon()},
            {"activation_function", "gelu_new"},
            {"resid_pdrop", c.dropout()},
            {"embd_pdrop", c.dropout()},
            {"attn_pdrop", 0.0},
            {"tie_word_embeddings", c.tied_head()},
            {"bos_token_id", nullptr},
            {"eos_token_id", nullptr}};
  }
  json root = {{"architectures", {c.qk_norm() ? "Qwen3ForCausalLM" : "LlamaForCausalLM"}},
               {"model_type", c.qk_norm() ? "qwen3" : "llama"},
               {"num_hidden_layers", c.layers()},
               {"hidden_size", c.width()},
               {"num_attention_heads", c.heads()},
               {"num_key_value_heads", c.kv_heads()},
               {"head_dim", c.width() / c.heads()},
               {"intermediate_size", c.ffn()},
               {"max_position_embeddings", c.max_positions()},
               {"vocab_size", c.vocabulary()},
               {"rms_norm_eps", c.norm_epsilon()},
               {"hidden_act", "silu"},
               {"attention_bias", c.biases()},
               {"tie_word_embeddings", c.tied_head()},
               {"rope_theta", c.rope_theta()},
               {"rope_parameters", {{"rope_theta", c.rope_theta()}, {"rope_type", "default"}}},
               {"bos_token_id", nullptr},
               {"eos_token_id", nullptr}};
  if (!c.qk_norm()) root["mlp_bias"] = c.biases();
  return root;
}

// What keeps this shape of model out of every architecture there; empty: nothing.
std::string WhyNone(const TransformerConfig& c) {
  std::vector<std::string> wrong;
  const auto need = [&](bool fits, const char* what) {
    if (!fits) wrong.emplace_back(what);
  };
  if (IsGpt2(c)) {
    need(c.norm() == TransformerConfig::LAYER_NORM, "learned positions with norm: RMS_NORM");
    need(c.activation() == TransformerConfig::GELU, "learned positions with activation: SWIGLU");
    need(c.biases(), "learned positions without biases");
    need(c.kv_heads() == c.heads(), "learned positions with kv_heads below heads");
    need(!c.qk_norm(), "learned positions with qk_norm");
  } else {
    need(c.norm() == TransformerConfig::RMS_NORM, "rotary positions with norm: LAYER_NORM");
    need(c.activation() == TransformerConfig::SWIGLU, "rotary positions with activation: GELU");
    need(!c.qk_norm() || !c.biases(), "qk_norm with biases");
  }
  return absl::StrJoin(wrong, ", ");
}

// The folder's tensors, from one file or from shards.
class TensorFiles {
 public:
  static absl::StatusOr<TensorFiles> Open(const std::string& folder) {
    TensorFiles files;
    files.folder_ = folder;
    std::vector<std::string> names;
    for (const std::string& name : PosixFiles().List(folder).value_or(std::vector<std::string>{}))
      if (absl::EndsWith(name, ".safetensors")) names.push_back(name);
    if (names.empty()) return absl::DataLossError(absl::StrCat(folder, " holds no .safetensors file"));
    for (const std::string& name : names) {
      SHOAL_ASSIGN_OR_RETURN(files.files_.emplace_back(), SafetensorsFile::Open(absl::StrCat(folder, "/", name)));
    }
    return files;
  }
  // Base models are saved without the "transformer." or "model." that those with a head have.
  absl::StatusOr<Tensor> Find(const std::string& name) const {
    for (absl::string_view candidate :
         {absl::string_view(name), absl::StripPrefix(absl::StripPrefix(name, "transformer."), "model.")}) {
      for (const auto& file : files_) {
        const auto at = file->entries().find(std::string(candidate));
        if (at != file->entries().end()) return file->View(at->second);
      }
    }
    return absl::DataLossError(absl::StrCat(folder_, ": tensor '", name, "' is missing; its config.json needs it"));
  }

 private:
  std::string folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
};

}  // namespace

bool IsHuggingFaceFolder(const std::string& path) { return PosixFiles().Exists(path + "/config.json"); }

absl::StatusOr<HuggingFaceModel> ReadHuggingFace(const std::string& folder, const WidthMultipliers& multipliers) {
  HuggingFaceModel model;
  SHOAL_ASSIGN_OR_RETURN(model.config, ReadConfig(folder + "/config.json"));
  SHOAL_ASSIGN_OR_RETURN(const TensorFiles files, TensorFiles::Open(folder));
  const Transformer shapes(model.config);
  OpContext ctx;
  for (const Param* param : shapes.params()) {
    const Place place = PlaceOf(model.config, param->name);
    SHOAL_ASSIGN_OR_RETURN(const Tensor found, files.Find(place.name));
    const Shape expected = TheirShape(place, param->shape);
    if (found.shape() != expected) {
      return absl::DataLossError(absl::StrCat(folder, ": tensor '", place.name, "' has shape ",
                                              ShapeString(found.shape()), ", config.json says ",
                                              ShapeString(expected)));
    }
    Tensor theirs = found;
    if (found.dtype() != DType::kF32) {
      theirs = Tensor::Zeros(expected, DType::kF32);
      ops::Copy(ctx, found, theirs);
    }
    const Tensor ours = Tensor::Zeros(param->shape, DType::kF32);
    CopyPart(place, ours, theirs, FoldedFactor(model.config, multipliers, param->name), Way::kTheirsToOurs);
    model.weights[param->name] = ours;
  }
  return model;
}

absl::Status WriteHuggingFace(const TransformerConfig& config, const WidthMultipliers& multipliers,
                              absl::FunctionRef<absl::StatusOr<Tensor>(const std::string&)> read,
                              const std::string& folder) {
  if (const std::string why = WhyNone(config); !why.empty())
    return absl::InvalidArgumentError(
        absl::StrCat("no Hugging Face architecture has ", why, "; write a .safetensors file in Shoal's names instead"));
  if (IsHuggingFaceFolder(folder))
    return absl::InvalidArgumentError(absl::StrCat(folder, " holds a model already; name another folder"));
  std::map<std::string, Tensor> theirs;
  const Transformer shapes(config);
  for (const Param* param : shapes.params()) {
    const Place place = PlaceOf(config, param->name);
    SHOAL_ASSIGN_OR_RETURN(const Tensor ours, read(param->name));
    Tensor& whole = theirs[place.name];
    if (!whole.defined()) whole = Tensor::Zeros(TheirShape(place, param->shape), DType::kF32);
    CopyPart(place, ours, whole, FoldedFactor(config, multipliers, param->name), Way::kOursToTheirs);
  }
  std::vector<NamedTensor> tensors;
  for (auto& [name, tensor] : theirs) tensors.push_back({name, tensor});
  FileSystem& files = PosixFiles();
  SHOAL_RETURN_IF_ERROR(files.MakeDirs(folder));
  const std::string weights = folder + "/model.safetensors";
  SHOAL_RETURN_IF_ERROR(WriteSafetensors(files, weights + ".tmp", tensors));
  SHOAL_RETURN_IF_ERROR(files.Rename(weights + ".tmp", weights));
  // Last: a folder with a config.json is whole.
  return WriteFileAtomically(files, folder + "/config.json", ConfigJson(config).dump(2) + "\n");
}

}  // namespace shoal
