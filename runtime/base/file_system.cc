#include "runtime/base/file_system.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "runtime/base/status.h"

namespace shoal {
namespace {

absl::Status SystemError(absl::string_view what, const std::string& path, int error) {
  const std::string message = absl::StrCat("cannot ", what, " ", path, ": ", std::strerror(error));
  if (error == ENOENT) return absl::NotFoundError(message);
  if (error == ENOSPC || error == EDQUOT)
    return EnvironmentError(absl::StrCat(message, "; free space and start again"));
  return EnvironmentError(message);
}

class PosixFile : public WritableFile {
 public:
  PosixFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~PosixFile() override {
    if (fd_ >= 0) ::close(fd_);
  }
  absl::Status Append(absl::string_view data) override {
    while (!data.empty()) {
      const ssize_t n = ::write(fd_, data.data(), std::min<size_t>(data.size(), 1u << 30));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return SystemError("write", path_, errno);
      data.remove_prefix(n);
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override { return ::fsync(fd_) == 0 ? absl::OkStatus() : SystemError("sync", path_, errno); }
  absl::Status Close() override {
    const int fd = fd_;
    fd_ = -1;
    return ::close(fd) == 0 ? absl::OkStatus() : SystemError("close", path_, errno);
  }

 private:
  int fd_;
  std::string path_;
};

class Posix : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return SystemError("create", path, errno);
    return std::make_unique<PosixFile>(fd, path);
  }
  absl::StatusOr<std::string> Read(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return SystemError("open", path, errno);
    std::string out;
    std::string buffer(1 << 16, '\0');
    while (true) {
      const ssize_t n = ::read(fd, buffer.data(), buffer.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        const int error = errno;
        ::close(fd);
        return SystemError("read", path, error);
      }
      if (n == 0) break;
      out.append(buffer.data(), n);
    }
    ::close(fd);
    return out;
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return ::rename(from.c_str(), to.c_str()) == 0 ? absl::OkStatus() : SystemError("rename to", to, errno);
  }
  absl::Status MakeDirs(const std::string& path) override {
    std::error_code error;
    std::filesystem::create_directories(path, error);
    return error ? SystemError("create folder", path, error.value()) : absl::OkStatus();
  }
  absl::Status RemoveAll(const std::string& path) override {
    std::error_code error;
    std::filesystem::remove_all(path, error);
    return error ? SystemError("remove", path, error.value()) : absl::OkStatus();
  }
  absl::Status SyncDir(const std::string& path) override {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return SystemError("open folder", path, errno);
    const int result = ::fsync(fd);
    const int error = errno;
    ::close(fd);
    return result == 0 ? absl::OkStatus() : SystemError("sync folder", path, error);
  }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    if (error) return SystemError("list", path, error.value());
    std::sort(names.begin(), names.end());
    return names;
  }
  bool Exists(const std::string& path) override {
    std::error_code error;
    return std::filesystem::exists(path, error);
  }
};

}  // namespace

FileSystem& PosixFiles() {
  static Posix files;
  return files;
}

absl::Status WriteFileAtomically(FileSystem& files, const std::string& path, absl::string_view data) {
  const std::string temporary = path + ".tmp";
  {
    SHOAL_ASSIGN_OR_RETURN(auto file, files.Create(temporary));
    SHOAL_RETURN_IF_ERROR(file->Append(data));
    SHOAL_RETURN_IF_ERROR(file->Sync());
    SHOAL_RETURN_IF_ERROR(file->Close());
  }
  SHOAL_RETURN_IF_ERROR(files.Rename(temporary, path));
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return files.SyncDir(folder.empty() ? "." : folder);
}

}  // namespace shoal
