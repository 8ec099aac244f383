// Ranks as MPI processes. Every operation is posted non-blocking and finished by complete(), the
// one place that waits: deadlines belong there. Counts of MPI are int, so long messages travel in
// pieces of at most 1 GiB.
#include <fmt/format.h>
// The C++ bindings of OpenMPI are deprecated and do not compile without warnings.
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

#include "parallel/communicator.h"

namespace shardtune::parallel {

namespace {
constexpr size_t kPieceBytes = size_t{1} << 30;
constexpr int kTag = 1;

template <typename Body>
void for_each_piece(size_t num_bytes, const Body& body) {
  for (size_t begin = 0; begin < num_bytes; begin += kPieceBytes)
    body(begin, static_cast<int>(std::min(kPieceBytes, num_bytes - begin)));
}

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS)
    return fmt::format("error {}", code);
  return std::string(text, static_cast<size_t>(length));
}

int rank_of_world() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int size_of_world() {
  int size = 1;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator() : Communicator(rank_of_world(), size_of_world()) {
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm host = MPI_COMM_NULL;
    check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank(), MPI_INFO_NULL, &host));
    int local_rank = 0;
    int local_size = 1;
    MPI_Comm_rank(host, &local_rank);
    MPI_Comm_size(host, &local_size);
    MPI_Comm_free(&host);
    char name[MPI_MAX_PROCESSOR_NAME] = {};
    int length = 0;
    check(MPI_Get_processor_name(name, &length));
    set_host(std::string(name, static_cast<size_t>(length)), local_rank, local_size);
  }

  ~MpiCommunicator() override {
    // MPI_Finalize waits for all ranks: after a failure they would wait for ever. Without it the
    // launcher sees an improper exit and ends the others.
    if (!failed_ && std::uncaught_exceptions() == 0)
      MPI_Finalize();
  }

  std::string_view backend() const override { return "mpi"; }
  void abort(int exit_code) noexcept override { MPI_Abort(MPI_COMM_WORLD, exit_code); }

 protected:
  void do_barrier() override {
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Ibarrier(MPI_COMM_WORLD, &request));
    complete({&request, 1});
  }

  void do_broadcast(std::span<std::byte> bytes, int root) override {
    for_each_piece(bytes.size(), [&](size_t begin, int count) {
      MPI_Request request = MPI_REQUEST_NULL;
      check(MPI_Ibcast(bytes.data() + begin, count, MPI_BYTE, root, MPI_COMM_WORLD, &request));
      complete({&request, 1});
    });
  }

  void do_all_gather(std::span<const std::byte> sent, std::span<std::byte> received) override {
    if (received.size() <= kPieceBytes) {
      const int count = static_cast<int>(sent.size());
      MPI_Request request = MPI_REQUEST_NULL;
      check(MPI_Iallgather(sent.data(), count, MPI_BYTE, received.data(), count, MPI_BYTE,
                           MPI_COMM_WORLD, &request));
      complete({&request, 1});
      return;
    }
    std::copy(sent.begin(), sent.end(),
              received.begin() + static_cast<std::ptrdiff_t>(sent.size()) * rank());
    for (int root = 0; root < world_size(); ++root)
      do_broadcast(received.subspan(static_cast<size_t>(root) * sent.size(), sent.size()), root);
  }

  void do_exchange(std::span<const Send> sends, std::span<const Receive> receives) override {
    std::vector<MPI_Request> requests;
    for (const Receive& receive : receives) {
      for_each_piece(receive.bytes.size(), [&](size_t begin, int count) {
        check(MPI_Irecv(receive.bytes.data() + begin, count, MPI_BYTE, receive.peer, kTag,
                        MPI_COMM_WORLD, &requests.emplace_back(MPI_REQUEST_NULL)));
      });
    }
    for (const Send& send : sends) {
      for_each_piece(send.bytes.size(), [&](size_t begin, int count) {
        check(MPI_Isend(send.bytes.data() + begin, count, MPI_BYTE, send.peer, kTag, MPI_COMM_WORLD,
                        &requests.emplace_back(MPI_REQUEST_NULL)));
      });
    }
    complete(requests);
  }

 private:
  void check(int code) {
    if (code == MPI_SUCCESS)
      return;
    failed_ = true;
    throw CommError(fmt::format("{}: MPI on {}: {}. Look for the first error of any rank.",
                                current_call(), host_name(), error_text(code)));
  }

  // Polls at once for a while, then with short sleeps: ranks may share cores, and a rank that
  // waits for a slower one must leave it the processor.
  void complete(std::span<MPI_Request> requests) {
    constexpr auto kPollAtOnce = std::chrono::milliseconds(2);
    constexpr auto kSleep = std::chrono::microseconds(20);
    const auto start = std::chrono::steady_clock::now();
    const int count = static_cast<int>(requests.size());
    while (true) {
      int done = 0;
      check(MPI_Testall(count, requests.data(), &done, MPI_STATUSES_IGNORE));
      if (done != 0)
        return;
      if (std::chrono::steady_clock::now() - start < kPollAtOnce)
        sched_yield();
      else
        std::this_thread::sleep_for(kSleep);
    }
  }

  bool failed_ = false;
};
}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator() {
  int initialised = 0;
  MPI_Initialized(&initialised);
  if (initialised != 0)
    throw CommError("make_mpi_communicator: expected one call per process, found MPI initialised.");
  int provided = MPI_THREAD_SINGLE;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS || provided < MPI_THREAD_SERIALIZED)
    throw CommError(fmt::format(
        "MPI_Init_thread: expected thread level {}, found {} (code {}). Use an MPI with threads.",
        static_cast<int>(MPI_THREAD_SERIALIZED), provided, code));
  return std::make_unique<MpiCommunicator>();
}

}  // namespace shardtune::parallel
