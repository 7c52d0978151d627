// One writer per folder: a file `lock` in it that names the host, process and Slurm job of its holder.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace shoal {

class FolderLock {
 public:
  struct Words {
    std::string what;    // "run directory": stands before the folder's path in the message
    std::string remedy;  // what to do while another process holds it
  };
  // Takes the lock of a folder that exists. EnvironmentError (exit 7) when another live process holds it, or one of
  // another host, which cannot be asked. A lock left by a dead process of this host is taken over.
  static absl::StatusOr<std::unique_ptr<FolderLock>> Take(const std::string& folder, const Words& words);
  ~FolderLock();  // gives it back

  // The live process that holds the folder: "process 17 on host"; nullopt: nobody.
  static std::optional<std::string> Holder(const std::string& folder);

 private:
  explicit FolderLock(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

std::string HostName();

}  // namespace shoal
