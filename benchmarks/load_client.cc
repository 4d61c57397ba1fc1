// Closed-loop load on one gRPC method: CONCURRENCY calls in flight, each followed by the next as soon as it ends.
//
//     load_client TARGET METHOD REQUEST_FILE CONCURRENCY SECONDS [stream] [framed] [expect=FILE]
//
// The request is sent as the bytes of REQUEST_FILE; of a server stream (`stream`) every message is read. Each answer must
// be OK, and equal to FILE where `expect` is given. `framed`: both files hold many messages, each behind its length (u32,
// little-endian), and calls take them in turn. Prints one JSON line. One thread, one connection: the client takes
// some 20 microseconds of CPU a call, so that what is measured is the server.

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

struct Totals {
  std::vector<float> latencies_us;
  long messages = 0;
  long failures = 0;
  std::string first_failure;
};

std::string read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "load_client: cannot read %s\n", path);
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

// The messages of a framed file; of any other, all of it as one.
std::vector<std::string> messages_of(const std::string& bytes, bool framed) {
  if (!framed) return {bytes};
  std::vector<std::string> messages;
  for (size_t at = 0; at + 4 <= bytes.size();) {
    const auto* head = reinterpret_cast<const unsigned char*>(bytes.data() + at);
    const size_t size = head[0] | head[1] << 8 | head[2] << 16 | static_cast<size_t>(head[3]) << 24;
    messages.push_back(bytes.substr(at + 4, size));
    at += 4 + size;
  }
  return messages;
}

std::string flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (buffer.Dump(&slices).ok())
    for (const auto& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

class Load {
 public:
  Load(const std::string& target, std::string method, const std::vector<std::string>& requests,
       std::vector<std::string> expected, bool stream)
      : method_(std::move(method)), expected_(std::move(expected)), stream_(stream) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    stub_ = std::make_unique<grpc::GenericStub>(
        grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
    for (const auto& request : requests) {
      grpc::Slice slice(request);
      requests_.emplace_back(&slice, 1);
    }
  }

  // Keeps `concurrency` calls in flight until `until`, then lets them end; counts those that end after `from` and by then.
  void run(int concurrency, Clock::time_point from, Clock::time_point until) {
    from_ = from;
    until_ = until;
    for (int i = 0; i < concurrency; ++i) start();
    void* tag;
    bool ok;
    while (in_flight_ > 0 && queue_.Next(&tag, &ok)) step(static_cast<One*>(tag), ok);
  }

  Totals totals;

 private:
  struct One {
    grpc::ClientContext context;
    grpc::ByteBuffer response;
    grpc::Status status;
    Clock::time_point started;
    size_t number;  // of its request
    std::unique_ptr<grpc::GenericClientAsyncResponseReader> unary;
    std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
    enum { kStarting, kWriting, kReading, kFinishing } state = kFinishing;
  };

  void start() {
    auto* call = new One;
    call->started = Clock::now();
    call->number = next_++ % requests_.size();
    call->context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    ++in_flight_;
    if (stream_) {
      call->stream = stub_->PrepareCall(&call->context, method_, &queue_);
      call->state = One::kStarting;
      call->stream->StartCall(call);
    } else {
      call->unary = stub_->PrepareUnaryCall(&call->context, method_, requests_[call->number], &queue_);
      call->unary->StartCall();
      call->unary->Finish(&call->response, &call->status, call);
    }
  }

  void step(One* call, bool ok) {
    switch (call->state) {
      case One::kStarting:
        call->state = One::kWriting;
        call->stream->WriteLast(requests_[call->number], grpc::WriteOptions(), call);
        return;
      case One::kReading:
        if (ok && call->started >= from_) check(*call);
        [[fallthrough]];
      case One::kWriting:
        if (ok) {
          call->state = One::kReading;
          call->stream->Read(&call->response, call);
        } else {
          call->state = One::kFinishing;
          call->stream->Finish(&call->status, call);
        }
        return;
      case One::kFinishing:
        finish(call);
    }
  }

  void check(const One& call) {
    ++totals.messages;
    if (!expected_.empty() && flatten(call.response) != expected_[call.number])
      fail("an answer differs from the expected one");
  }

  void fail(const std::string& why) {
    if (totals.failures++ == 0) totals.first_failure = why;
  }

  void finish(One* call) {
    auto now = Clock::now();
    if (now >= from_ && now <= until_) {
      if (!call->status.ok()) {
        fail(std::to_string(call->status.error_code()) + " " + call->status.error_message());
      } else {
        totals.latencies_us.push_back(std::chrono::duration<float, std::micro>(now - call->started).count());
        if (!stream_) check(*call);
      }
    } else if (!call->status.ok()) {
      fail(std::to_string(call->status.error_code()) + " " + call->status.error_message());
    }
    delete call;
    --in_flight_;
    if (now < until_) start();
  }

  std::string method_;
  std::vector<std::string> expected_;
  bool stream_;
  std::vector<grpc::ByteBuffer> requests_;
  size_t next_ = 0;
  std::unique_ptr<grpc::GenericStub> stub_;
  grpc::CompletionQueue queue_;
  Clock::time_point from_, until_;
  int in_flight_ = 0;
};

float percentile(std::vector<float>& values, double share) {
  if (values.empty()) return 0;
  auto nth = values.begin() + std::min<size_t>(values.size() - 1, static_cast<size_t>(share * values.size()));
  std::nth_element(values.begin(), nth, values.end());
  return *nth;
}

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "load_client TARGET METHOD REQUEST_FILE CONCURRENCY SECONDS [stream] [framed] [expect=FILE]\n");
    return 2;
  }
  bool stream = false, framed = false, expects = false;
  std::string expected;
  for (int i = 6; i < argc; ++i) {
    std::string option = argv[i];
    if (option == "stream") stream = true;
    else if (option == "framed") framed = true;
    else if (option.rfind("expect=", 0) == 0) expected = read_file(argv[i] + 7), expects = true;
  }
  const auto requests = messages_of(read_file(argv[3]), framed);
  const auto answers = expects ? messages_of(expected, framed) : std::vector<std::string>();
  if (requests.empty() || (expects && answers.size() != requests.size())) {
    std::fprintf(stderr, "load_client: %zu requests, %zu expected answers\n", requests.size(), answers.size());
    return 2;
  }
  Load load(argv[1], argv[2], requests, answers, stream);
  const double seconds = std::atof(argv[5]);
  // The first fifth warms connection, server and caches, and is not counted.
  const auto begin = Clock::now();
  const auto from = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds * 0.2));
  const auto until = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds * 1.2));
  const double cpu_before = cpu_seconds();
  load.run(std::atoi(argv[4]), from, until);
  auto& latencies = load.totals.latencies_us;
  std::printf(
      "{\"calls\": %zu, \"calls_per_s\": %.1f, \"messages_per_s\": %.1f, \"p50_us\": %.0f, \"p90_us\": %.0f, "
      "\"p99_us\": %.0f, \"failures\": %ld, \"first_failure\": \"%s\", \"client_cpu_s\": %.3f}\n",
      latencies.size(), latencies.size() / seconds, load.totals.messages / seconds, percentile(latencies, 0.5),
      percentile(latencies, 0.9), percentile(latencies, 0.99), load.totals.failures, load.totals.first_failure.c_str(),
      cpu_seconds() - cpu_before);
  return load.totals.failures != 0;
}
