// libFuzzer target: the reader of job files; what it accepts, it reads back from its own text.
#include <cstddef>
#include <cstdint>
#include <string>

#include "launch/config_loader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  shoal::config::Job job;
  shoal::ConfigErrors errors;
  shoal::FieldPlaces places;
  shoal::ParseTextConfig(std::string(reinterpret_cast<const char*>(data), size), "fuzz", job, errors, places);
  if (!errors.empty()) return 0;
  shoal::config::Job again;
  shoal::ParseTextConfig(shoal::JobText(job), "again", again, errors, places);
  if (!errors.empty()) __builtin_trap();
  return 0;
}
