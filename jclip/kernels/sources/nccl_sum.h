// Sums over the processes of a training by NCCL, whose functions are called by their addresses: nothing is linked.
#pragma once
#include <cstddef>
#include <cstdint>

#include "nccl_watch.h"

namespace jclip {

// ncclFloat32 and ncclSum of nccl.h, and its signatures: ncclResult_t and its enums are passed as int, handles as pointers.
const int NCCL_FLOAT32 = 7, NCCL_SUM = 0;
using NcclAllReduce = int (*)(const void*, void*, size_t, int, int, void*, void*);
using NcclGroup = int (*)();

template <class Function, class Data>
Function at_address(Data& data, const char* name) {
    return reinterpret_cast<Function>(uintptr_t(data[name]));  // a double holds whole numbers to 2^53, an address has 48 bits
}

// Sums of `count` arrays in one launch, in the stream in which Jittor computes (CUDA's default one); all ranks have the same
// arrays. The first status other than success is left at data["status"].
template <class Data>
void nccl_sum(const float* const* in, float* const* out, const int64_t* sizes, int count, Data& data) {
    auto start = at_address<NcclGroup>(data, "start"), end = at_address<NcclGroup>(data, "end");
    auto all_reduce = at_address<NcclAllReduce>(data, "sum");
    auto comm = at_address<void*>(data, "comm");
    int& status = *at_address<int*>(data, "status");
    NcclWatch& watch = *at_address<NcclWatch*>(data, "watch");
    status = start();
    if (status) return;
    begin_sum(watch);
    for (int i = 0; i < count && !status; i++)
        status = all_reduce(in[i], out[i], size_t(sizes[i]), NCCL_FLOAT32, NCCL_SUM, comm, nullptr);
    const int ended = end();
    end_sum(watch);
    if (!status) status = ended;
}

}  // namespace jclip
