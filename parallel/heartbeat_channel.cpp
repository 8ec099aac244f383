#include "parallel/heartbeat_channel.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>

namespace shardtune::parallel {

namespace {
static_assert(sizeof(Message) == 88 && std::is_trivially_copyable_v<Message>);
static_assert(std::is_trivially_copyable_v<Contact>);

// A stranger's connection must not keep the ranks from connecting.
constexpr double kHelloSeconds = 5.0;
constexpr double kTryAddressSeconds = 2.0;
// Rank 0 takes one after the other, strangers included.
constexpr double kWelcomeSeconds = 20.0;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int left_ms(double deadline) {
  return std::max(0, static_cast<int>((deadline - now_seconds()) * 1e3) + 1);
}

std::string address_text(const Contact::Address& address) {
  const auto* any = reinterpret_cast<const sockaddr*>(address.bytes.data());
  if (any->sa_family == AF_UNIX)
    return "a Unix socket";
  char host[NI_MAXHOST] = {};
  char port[NI_MAXSERV] = {};
  if (getnameinfo(any, address.length, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "an address";
  return fmt::format("{} port {}", host, port);
}

/// The connection's first message of this kind, or none by the deadline.
bool wait_for(Connection& connection, MessageKind kind, double deadline, Message& message) {
  std::vector<Message> messages;
  while (now_seconds() < deadline) {
    pollfd waiting{connection.descriptor(), POLLIN, 0};
    if (poll(&waiting, 1, left_ms(deadline)) <= 0)
      continue;
    const bool open = connection.receive(messages);
    if (!messages.empty()) {
      message = messages.front();
      return message.kind == kind;
    }
    if (!open)
      return false;
  }
  return false;
}
}  // namespace

Connection::Connection(int descriptor) : descriptor_(descriptor) {
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  const int one = 1;
  // Fails on Unix sockets, which need none of it.
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ucred peer{};
  socklen_t length = sizeof peer;
  sockaddr_storage own{};
  socklen_t own_length = sizeof own;
  if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&own), &own_length) == 0 &&
      own.ss_family == AF_UNIX &&
      getsockopt(descriptor, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid > 0)
    peer_process_ = static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0));
}

Connection::~Connection() {
  close(descriptor_);
  if (peer_process_ >= 0)
    close(peer_process_);
}

void Connection::send(const Message& message) {
  if (!outgoing_.empty() && message.kind == MessageKind::kBeat) {
    if (outgoing_.size() >= 16 * sizeof(Message))
      return;
  }
  const auto* bytes = reinterpret_cast<const std::byte*>(&message);
  outgoing_.insert(outgoing_.end(), bytes, bytes + sizeof message);
  const ssize_t sent =
      ::send(descriptor_, outgoing_.data(), outgoing_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  // A broken connection is found by receive().
  if (sent > 0)
    outgoing_.erase(outgoing_.begin(), outgoing_.begin() + sent);
}

bool Connection::receive(std::vector<Message>& messages) {
  bool open = true;
  while (true) {
    std::array<std::byte, 16 * sizeof(Message)> buffer;
    const ssize_t count = recv(descriptor_, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (count > 0) {
      incoming_.insert(incoming_.end(), buffer.begin(), buffer.begin() + count);
      continue;
    }
    if (count < 0 && errno == EINTR)
      continue;
    open = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
    break;
  }
  size_t begin = 0;
  for (; incoming_.size() - begin >= sizeof(Message); begin += sizeof(Message))
    std::memcpy(&messages.emplace_back(), incoming_.data() + begin, sizeof(Message));
  incoming_.erase(incoming_.begin(), incoming_.begin() + static_cast<std::ptrdiff_t>(begin));
  return open;
}

void Connection::kill_peer() const {
  if (peer_process_ >= 0)
    syscall(SYS_pidfd_send_signal, peer_process_, SIGKILL, nullptr, 0);
}

Listener::Listener(Reach reach) {
  if (getrandom(contact_.token.data(), sizeof contact_.token, 0) !=
      static_cast<ssize_t>(sizeof contact_.token))
    throw CommError(fmt::format("heartbeat: getrandom: {}.", std::strerror(errno)));
  if (reach == Reach::kHost)
    listen_on_host();
  else
    listen_on_network();
}

Listener::~Listener() { close_all(); }

void Listener::close_all() {
  for (const int socket : sockets_)
    close(socket);
  sockets_.clear();
}

void Listener::listen_at(const void* address, uint32_t length) {
  if (contact_.num_addresses == Contact::kMaxAddresses)
    return;
  const auto* any = static_cast<const sockaddr*>(address);
  const int socket = ::socket(any->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket < 0)
    return;
  sockets_.push_back(socket);
  Contact::Address& entry = contact_.addresses[contact_.num_addresses];
  socklen_t bound = sizeof entry.bytes;
  if (bind(socket, any, length) != 0 || listen(socket, 128) != 0 ||
      getsockname(socket, reinterpret_cast<sockaddr*>(entry.bytes.data()), &bound) != 0)
    return;
  entry.length = bound;
  ++contact_.num_addresses;
}

void Listener::listen_on_host() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // A name that starts with a zero byte is no file.
  uint64_t name = 0;
  if (getrandom(&name, sizeof name, 0) != static_cast<ssize_t>(sizeof name))
    throw CommError(fmt::format("heartbeat: getrandom: {}.", std::strerror(errno)));
  const std::string text = fmt::format("shardtune-{:016x}", name);
  std::memcpy(address.sun_path + 1, text.data(), text.size());
  listen_at(&address, static_cast<uint32_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size()));
  if (contact_.num_addresses == 0)
    throw CommError(fmt::format("heartbeat: no Unix socket: {}.", std::strerror(errno)));
}

void Listener::listen_on_network() {
  const char* wanted = std::getenv("SHARDTUNE_INTERFACE");
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0)
    throw CommError(fmt::format("heartbeat: getifaddrs: {}.", std::strerror(errno)));
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, &freeifaddrs);
  // Loopback only where it is asked for or nothing else is there: ranks that pretend to be hosts.
  for (const bool loopback : {false, true}) {
    for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0)
        continue;
      if (wanted == nullptr ? ((entry->ifa_flags & IFF_LOOPBACK) != 0) != loopback
                            : std::strcmp(wanted, entry->ifa_name) != 0)
        continue;
      if (entry->ifa_addr->sa_family == AF_INET)
        listen_at(entry->ifa_addr, sizeof(sockaddr_in));
      // Link-local addresses mean something only with an interface of the same name.
      if (entry->ifa_addr->sa_family == AF_INET6 &&
          !IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<sockaddr_in6*>(entry->ifa_addr)->sin6_addr))
        listen_at(entry->ifa_addr, sizeof(sockaddr_in6));
    }
    if (contact_.num_addresses > 0)
      return;
  }
  throw CommError(fmt::format(
      "heartbeat: no network interface to listen on{}. Name one in SHARDTUNE_INTERFACE.",
      wanted == nullptr ? "" : fmt::format(" called '{}'", wanted)));
}

std::vector<std::unique_ptr<Connection>> Listener::accept_all(int world_size,
                                                              double timeout_seconds) {
  std::vector<std::unique_ptr<Connection>> ranks(static_cast<size_t>(world_size));
  const double deadline = now_seconds() + timeout_seconds;
  int missing = world_size - 1;
  while (missing > 0 && now_seconds() < deadline) {
    std::vector<pollfd> waiting;
    for (const int socket : sockets_)
      waiting.push_back({socket, POLLIN, 0});
    if (poll(waiting.data(), waiting.size(), left_ms(deadline)) <= 0)
      continue;
    for (const int socket : sockets_) {
      const int accepted = accept4(socket, nullptr, nullptr, SOCK_CLOEXEC);
      if (accepted < 0)
        continue;
      auto connection = std::make_unique<Connection>(accepted);
      Message hello;
      if (!wait_for(*connection, MessageKind::kHello, now_seconds() + kHelloSeconds, hello) ||
          hello.token != contact_.token || hello.rank < 1 || hello.rank >= world_size ||
          ranks[static_cast<size_t>(hello.rank)])
        continue;
      connection->send({.kind = MessageKind::kWelcome, .rank = 0, .token = contact_.token});
      ranks[static_cast<size_t>(hello.rank)] = std::move(connection);
      --missing;
    }
  }
  close_all();
  std::string names;
  for (int rank = 1; rank < world_size; ++rank) {
    if (!ranks[static_cast<size_t>(rank)])
      names += (names.empty() ? "" : ", ") + std::to_string(rank);
  }
  if (!names.empty())
    throw CommError(fmt::format(
        "heartbeat: expected a connection of every rank within {} s, found none of rank {}. Look "
        "for their first error, or name the network in SHARDTUNE_INTERFACE.",
        timeout_seconds, names));
  return ranks;
}

namespace {
bool finish_connect(int socket, const Contact::Address& address, double deadline) {
  const auto* any = reinterpret_cast<const sockaddr*>(address.bytes.data());
  if (connect(socket, any, address.length) == 0)
    return true;
  if (errno != EINPROGRESS)
    return false;
  pollfd waiting{socket, POLLOUT, 0};
  int error = 0;
  socklen_t length = sizeof error;
  return poll(&waiting, 1, left_ms(deadline)) > 0 &&
         getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
}

/// Connected within the deadline, or null.
std::unique_ptr<Connection> try_address(const Contact::Address& address, double deadline) {
  const auto* any = reinterpret_cast<const sockaddr*>(address.bytes.data());
  const int socket = ::socket(any->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket < 0)
    return nullptr;
  if (!finish_connect(socket, address, deadline)) {
    close(socket);
    return nullptr;
  }
  return std::make_unique<Connection>(socket);
}
}  // namespace

std::unique_ptr<Connection> connect_to(const Contact& contact, int rank, double timeout_seconds) {
  const double deadline = now_seconds() + timeout_seconds;
  do {
    for (uint32_t i = 0; i < contact.num_addresses; ++i) {
      const double soon = std::min(deadline, now_seconds() + kTryAddressSeconds);
      auto connection = try_address(contact.addresses[i], soon);
      if (!connection)
        continue;
      connection->send({.kind = MessageKind::kHello, .rank = rank, .token = contact.token});
      // Another machine may have the same private address: it does not know the token.
      Message welcome;
      const double late = std::min(deadline, now_seconds() + kWelcomeSeconds);
      if (wait_for(*connection, MessageKind::kWelcome, late, welcome) &&
          welcome.token == contact.token)
        return connection;
    }
    poll(nullptr, 0, 50);
  } while (now_seconds() < deadline);
  std::string tried;
  for (uint32_t i = 0; i < contact.num_addresses; ++i)
    tried += (i == 0 ? "" : ", ") + address_text(contact.addresses[i]);
  throw CommError(fmt::format(
      "[rank {}] heartbeat: expected rank 0 to answer within {} s at {}, found nobody. Let the "
      "hosts reach each other there, or name the network in SHARDTUNE_INTERFACE.",
      rank, timeout_seconds, tried));
}

}  // namespace shardtune::parallel
