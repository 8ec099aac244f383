// A device that fails: results of chosen requests are altered.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "io/async_io.h"

namespace shardtune::testing {

class FailingIo : public io::AsyncIo {
 public:
  /// Gets a request and its result; returns the result to show.
  using Alter = std::function<int64_t(const io::IoRequest&, int64_t count)>;

  FailingIo(std::unique_ptr<io::AsyncIo> io, Alter alter)
      : io_(std::move(io)), alter_(std::move(alter)) {}

  void register_buffers(std::span<const std::span<std::byte>> buffers) override {
    io_->register_buffers(buffers);
  }
  void submit(std::span<const io::IoRequest> requests) override {
    for (const io::IoRequest& request : requests)
      requests_[request.tag] = request;
    io_->submit(requests);
  }
  io::IoResult wait_one() override { return altered(io_->wait_one()); }
  std::optional<io::IoResult> try_one() override {
    const auto result = io_->try_one();
    return result ? std::optional(altered(*result)) : std::nullopt;
  }
  std::string description() const override { return io_->description(); }

 private:
  io::IoResult altered(io::IoResult result) {
    result.count = alter_(requests_.at(result.tag), result.count);
    return result;
  }

  std::unique_ptr<io::AsyncIo> io_;
  Alter alter_;
  std::map<uint64_t, io::IoRequest> requests_;
};

}  // namespace shardtune::testing
