// The group of one rank: the base class already copies what a rank sends to itself, so no transport
// function is ever reached.
#include <unistd.h>

#include "parallel/communicator.h"

namespace shardtune::parallel {

namespace {
class SingleCommunicator : public Communicator {
 public:
  SingleCommunicator() : Communicator(0, 1) {
    char name[256] = {};
    gethostname(name, sizeof(name) - 1);
    set_host({.name = name});
  }
  std::string_view backend() const override { return "single"; }
  void abort(int exit_code) noexcept override {}

 protected:
  void do_broadcast(std::span<std::byte> bytes, int root) override {}
  void do_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) override {
    std::copy(sent.begin(), sent.end(), received.begin());
  }
  void do_exchange(std::span<const Send> sends, std::span<const Receive> receives) override {}
};
}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<SingleCommunicator>();
}

}  // namespace shardtune::parallel
