// What the operators share of oneDNN: engine, stream, and primitives kept by what they were made for.
#pragma once
#include <dnnl.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

namespace jclip {

using Tag = dnnl::memory::format_tag;
using Arguments = std::unordered_map<int, dnnl::memory>;

inline dnnl::engine& engine() {
    static dnnl::engine& made = *new dnnl::engine(dnnl::engine::kind::cpu, 0);  // outlives every operator's library
    return made;
}

inline dnnl::stream& stream() {
    static dnnl::stream& made = *new dnnl::stream(engine());
    return made;
}

// float and Jittor's two-byte bfloat16 are what arrays hold here.
template <class X>
constexpr dnnl::memory::data_type type_of() {
    return sizeof(X) == 2 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

inline dnnl::memory array(const dnnl::memory::desc& desc, const void* data) {
    return dnnl::memory(desc, engine(), const_cast<void*>(data));
}

// Primitives bring no scratch memory of their own, which each would keep: those that run one after the other share it.
inline dnnl::primitive_attr attributes(const dnnl::post_ops& ops = dnnl::post_ops()) {
    dnnl::primitive_attr made;
    made.set_post_ops(ops);
    made.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    return made;
}

inline dnnl::memory scratch(const dnnl::memory::desc& wanted) {
    static std::unique_ptr<char[]>& kept = *new std::unique_ptr<char[]>();
    static size_t size = 0;
    if (wanted.get_size() > size) {
        size = wanted.get_size();
        kept.reset();
        kept.reset(new char[size + 64]);
    }
    char* aligned = kept.get() ? kept.get() + (64 - reinterpret_cast<uintptr_t>(kept.get()) % 64) : nullptr;
    return array(wanted, aligned);
}

// The value for `key`, made by `make` when it is new. Sizes come and go with texts and batches, so the table is bounded.
template <class Key, class Value, class Make>
Value& kept(const Key& key, Make make) {
    static std::map<Key, Value>& table = *new std::map<Key, Value>();
    auto found = table.find(key);
    if (found != table.end()) return found->second;
    if (table.size() >= 512) table.clear();
    return table.emplace(key, make()).first->second;
}

inline float widen(float x) { return x; }

template <class X>
inline float widen(X x) {
    static_assert(sizeof(X) == 2, "float or bfloat16");
    uint16_t half;
    std::memcpy(&half, &x, 2);
    const uint32_t bits = uint32_t(half) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

inline void narrow(float x, float& y) { y = x; }

// A float's bits as bfloat16, to the nearest, ties to even; what is no number stays none.
inline uint32_t half_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return ((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16;
}

template <class Y>
inline void narrow(float x, Y& y) {
    static_assert(sizeof(Y) == 2, "float or bfloat16");
    const uint16_t half = uint16_t(half_bits(x));
    std::memcpy(&y, &half, 2);
}

template <class Y>
void narrow_all(const float* x, Y* y, int64_t count) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++) narrow(x[i], y[i]);
}

// `count` values as bfloat16.
inline std::unique_ptr<uint16_t[]> rounded(const float* x, int64_t count) {
    std::unique_ptr<uint16_t[]> y(new uint16_t[count]);
    narrow_all(x, y.get(), count);
    return y;
}

}  // namespace jclip
