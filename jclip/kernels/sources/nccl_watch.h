// Ends a process whose sums by NCCL do not: a network that fails while no process dies lets all of them wait for ever, and
// Python, which waits with them, can't notice. A thread of its own asks NCCL for errors, and how old the last sum is.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace jclip {

const int NCCL_IN_PROGRESS = 7, CUDA_NOT_READY = 600, CUDA_EVENT_WITHOUT_TIMES = 2;
const useconds_t PERIOD = 100 * 1000;  // µs

// Laid out as _Watch of jclip/machine/nccl.py, which makes it. What belongs to the driver is null without a GPU.
struct NcclWatch {
    double limit;  // seconds that a sum may take; 0: nothing is watched yet
    void* comm;
    int (*async_error)(void*, int*);
    const char* (*error_text)(int);
    int (*event_create)(void**, unsigned);
    int (*event_record)(void*, void*);
    int (*event_query)(void*);
    int (*context_get)(void**);
    int (*context_set)(void*);
    const char* name;    // what its line begins with
    const char* advice;  // and ends with
    const char* marker;  // file that the first process of a host makes that reports; "" without one
    double delay;        // seconds from the first rank's report to this one's
    std::atomic<int64_t> running, stop;
    // of the sums: when the last one was begun, whether it is still being given to the card, what comes after it there
    std::atomic<double> since;
    std::atomic<int64_t> giving;
    void *event, *context;
};

inline double seconds_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

inline void end_process(const NcclWatch& watch, const char* what) {
    usleep(useconds_t(watch.delay * 1e6));
    const int made = *watch.marker ? open(watch.marker, O_CREAT | O_EXCL | O_WRONLY, 0600) : 0;
    if (made >= 0 || errno != EEXIST) {
        char line[2048];
        const int size = snprintf(line, sizeof line, "%s: %s: %s\n", watch.name, what, watch.advice);
        if (write(2, line, size_t(size) < sizeof line ? size_t(size) : sizeof line - 1) < 0) _exit(1);
    }
    _exit(1);
}

inline void* watch_sums(void* given) {
    NcclWatch& watch = *static_cast<NcclWatch*>(given);
    char what[256];
    if (watch.context) watch.context_set(watch.context);
    for (; !watch.stop; usleep(PERIOD)) {
        if (!watch.limit) continue;
        int status = 0;
        if (!watch.async_error(watch.comm, &status) && status && status != NCCL_IN_PROGRESS) {
            snprintf(what, sizeof what, "a sum over ranks failed: %s", watch.error_text(status));
            end_process(watch, what);
        }
        if (seconds_now() - watch.since <= watch.limit) continue;
        if (watch.giving || (watch.event && watch.event_query(watch.event) == CUDA_NOT_READY)) {
            snprintf(what, sizeof what, "a sum over ranks was not there after %g s (JCLIP_NCCL_SECONDS): a rank or the network hangs",
                     watch.limit);
            end_process(watch, what);
        }
    }
    watch.running = 0;
    return nullptr;
}

// Around the calls of one sum, by the thread that computes. The first one starts the thread that watches.
inline void begin_sum(NcclWatch& watch) {
    watch.since = seconds_now();
    watch.giving = 1;
    if (watch.running || watch.stop) return;
    if (watch.event_create && (watch.context_get(&watch.context) || watch.event_create(&watch.event, CUDA_EVENT_WITHOUT_TIMES)))
        watch.event = nullptr;
    pthread_t thread;
    watch.running = 1;
    if (pthread_create(&thread, nullptr, watch_sums, &watch)) watch.running = 0;
    else pthread_detach(thread);
}

inline void end_sum(NcclWatch& watch) {
    if (watch.event) watch.event_record(watch.event, nullptr);
    watch.giving = 0;
}

}  // namespace jclip
