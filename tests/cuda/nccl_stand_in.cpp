// What jclip calls of NCCL, on the host's memory and over MPI: arrays are summed as given, in the order and with the sizes
// that all ranks must have alike. NCCL_STAND_IN: "refuses" lets rank 1 not join, "errs" makes its sums wrong.
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, FLOAT32 = 7, SUM = 0 };

const int MOST = 16;  // arrays of a launch

struct Id {
    char bytes[128];
};
struct Comm {
    MPI_Comm comm;
    int rank;
    bool errs;
};
struct Call {
    const void* from;
    void* to;
    size_t count;
    Comm* comm;
};

int depth = 0;
int launches = 0;
std::vector<Call> calls;

bool is(const char* mode) {
    const char* given = std::getenv("NCCL_STAND_IN");
    return given && !std::strcmp(given, mode);
}

bool same_everywhere(const void* data, size_t size, MPI_Comm comm) {
    std::vector<char> first(size);
    std::memcpy(first.data(), data, size);
    MPI_Bcast(first.data(), int(size), MPI_BYTE, 0, comm);
    int same = !std::memcmp(first.data(), data, size), all;
    MPI_Allreduce(&same, &all, 1, MPI_INT, MPI_MIN, comm);
    return all;
}

// All arrays of a launch in one exchange: each has processes wait for each other.
int launch() {
    std::vector<long long> sizes(2 * MOST, 0), largest(2 * MOST);
    std::vector<float> own, sums;
    if (calls.empty() || calls.size() > MOST) return INVALID_ARGUMENT;
    for (size_t i = 0; i < calls.size(); i++) {
        sizes[i] = (long long)calls[i].count, sizes[MOST + i] = -sizes[i];
        const float* from = static_cast<const float*>(calls[i].from);
        own.insert(own.end(), from, from + calls[i].count);
    }
    const Comm comm = *calls[0].comm;
    MPI_Allreduce(sizes.data(), largest.data(), 2 * MOST, MPI_LONG_LONG, MPI_MAX, comm.comm);
    if (sizes != largest) return INVALID_ARGUMENT;  // another rank has others
    sums.resize(own.size());
    MPI_Allreduce(own.data(), sums.data(), int(own.size()), MPI_FLOAT, MPI_SUM, comm.comm);
    if (comm.errs) sums.back() += 1;
    const float* next = sums.data();
    for (const Call& call : calls) {
        std::copy(next, next + call.count, static_cast<float*>(call.to));
        next += call.count;
    }
    launches++;
    calls.clear();
    return SUCCESS;
}

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
    *version = 20903;
    return SUCCESS;
}

const char* ncclGetErrorString(int status) { return status == SYSTEM_ERROR ? "unhandled system error" : "invalid argument"; }

int ncclGetUniqueId(Id* id) {
    for (char& byte : id->bytes) byte = char(std::rand() % 256);
    return SUCCESS;
}

int ncclCommInitRank(Comm** made, int size, Id id, int rank) {
    int own, all;
    MPI_Comm_rank(MPI_COMM_WORLD, &own);
    MPI_Comm_size(MPI_COMM_WORLD, &all);
    const bool right = same_everywhere(id.bytes, sizeof id.bytes, MPI_COMM_WORLD) && own == rank && all == size;
    if (!right) return INVALID_ARGUMENT;
    if (rank == 1 && is("refuses")) return SYSTEM_ERROR;
    *made = new Comm{MPI_COMM_WORLD, rank, rank == 1 && is("errs")};
    return SUCCESS;
}

int ncclGroupStart() {
    depth++;
    return SUCCESS;
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int operation, Comm* comm, void* stream) {
    if (depth != 1 || type != FLOAT32 || operation != SUM || stream || !count) return INVALID_ARGUMENT;
    calls.push_back({from, to, count, comm});
    return SUCCESS;
}

int ncclGroupEnd() {
    if (--depth) return INVALID_ARGUMENT;
    return launch();
}

int ncclCommGetAsyncError(Comm*, int* status) {
    *status = SUCCESS;
    return SUCCESS;
}

int ncclCommDestroy(Comm* comm) {
    delete comm;
    return SUCCESS;
}

int ncclCommAbort(Comm* comm) { return ncclCommDestroy(comm); }

int stand_in_launches() { return launches; }
}
