// Just enough of CUDA for a g++ build: a block's threads are threads, its shared memory is static, blocks run in turn.
#pragma once
#include <pthread.h>
#include <cmath>
#include <functional>
#include <thread>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __shared__ static

struct dim3 {
    unsigned x, y;
    dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
static thread_local dim3 threadIdx, blockIdx;
static pthread_barrier_t barrier;
inline void __syncthreads() { pthread_barrier_wait(&barrier); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

inline void launch(dim3 blocks, unsigned threads, const std::function<void()>& kernel) {
    for (unsigned y = 0; y < blocks.y; y++)
        for (unsigned x = 0; x < blocks.x; x++) {
            pthread_barrier_init(&barrier, nullptr, threads);
            std::vector<std::thread> running;
            for (unsigned t = 0; t < threads; t++)
                running.emplace_back([=, &kernel] {
                    threadIdx = dim3(t);
                    blockIdx = dim3(x, y);
                    kernel();
                });
            for (auto& thread : running) thread.join();
            pthread_barrier_destroy(&barrier);
        }
}
#define JCLIP_LAUNCH(kernel, blocks, threads, ...) launch(blocks, threads, [=] { kernel(__VA_ARGS__); })
