// The side channel's sockets: rank 0 listens while the ranks connect, then each other rank has one
// connection to it. On one host these are Unix sockets in the abstract namespace, which no network
// reaches and no file holds; between hosts TCP. A connection is accepted only with the job's random
// token, which the ranks get through MPI; the listening socket is closed once all are connected.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel/heartbeat_judge.h"

namespace shardtune::parallel {

enum class MessageKind : uint32_t { kHello, kWelcome, kBeat, kLoss, kBye, kEnding };

/// All messages have this one form; the fields that a kind does not use are zero.
struct Message {
  MessageKind kind = MessageKind::kBeat;
  int32_t rank = -1;   // of the sender; of kLoss: who is lost; of kEnding: who ends the job
  int32_t detail = 0;  // kLoss: reason; kEnding: exit code
  uint32_t padding = 0;
  double seconds = 0.0;
  Beat beat{};
  std::array<uint64_t, 2> token{};  // kHello, kWelcome
};

enum class Reach { kHost, kNetwork };

/// Where rank 0 listens and the token; plain bytes to be sent through MPI.
struct Contact {
  static constexpr size_t kMaxAddresses = 8;
  struct Address {
    std::array<std::byte, 128> bytes{};  // a sockaddr
    uint32_t length = 0;
  };
  std::array<uint64_t, 2> token{};
  uint32_t num_addresses = 0;
  std::array<Address, kMaxAddresses> addresses{};
};

class Connection {
 public:
  explicit Connection(int descriptor);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection();

  int descriptor() const { return descriptor_; }
  /// Never blocks. What a slow peer has no room for is sent with a later call; beats are dropped
  /// meanwhile.
  void send(const Message& message);
  /// Appends what has arrived. False when the peer has closed or the connection broke.
  bool receive(std::vector<Message>& messages);
  /// SIGKILL to the process at the other end, where it is on this host (Unix sockets). Through a
  /// descriptor of the process, so that nobody else can be meant.
  void kill_peer() const;

 private:
  int descriptor_;
  int peer_process_ = -1;
  std::vector<std::byte> incoming_;
  std::vector<std::byte> outgoing_;
};

class Listener {
 public:
  /// CommError: no socket can be made. SHARDTUNE_INTERFACE names the one network interface to
  /// listen on; else all but loopback.
  explicit Listener(Reach reach);
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener();

  const Contact& contact() const { return contact_; }
  /// Waits for ranks 1..world_size-1, then closes the listening sockets. [rank], empty for 0.
  /// CommError naming the ranks that did not come in time.
  std::vector<std::unique_ptr<Connection>> accept_all(int world_size, double timeout_seconds);

 private:
  void listen_on_host();
  void listen_on_network();
  void listen_at(const void* address, uint32_t length);
  void close_all();

  Contact contact_;
  std::vector<int> sockets_;
};

/// From a rank other than 0. CommError naming the addresses tried.
std::unique_ptr<Connection> connect_to(const Contact& contact, int rank, double timeout_seconds);

}  // namespace shardtune::parallel
