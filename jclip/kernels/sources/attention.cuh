// Attention over packed q, k, v of shape (B, N, 3D) that never holds an (N, N) table: a thread per row, keys and values
// in tiles of shared memory, the softmax as it goes (Milakov & Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135).
// float, half or bfloat16 in and out, float in between; heads of at most 128 numbers.
#pragma once
#include <cstdint>
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define JCLIP_LAUNCH(kernel, blocks, threads, ...) kernel<<<blocks, threads>>>(__VA_ARGS__)
#endif

namespace jclip {

constexpr int ROWS = 64, TILE = 16;
constexpr float NEVER = -1e30f;  // smaller than any score; an infinity would not survive fast-math

// Where one head of one sample begins, and how it is laid out.
struct Head {
    int64_t at, row, offset;
    __device__ Head(int64_t head, int N, int H, int d, int parts) {
        row = int64_t(parts) * H * d;
        offset = int64_t(H) * d;
        at = head / H * N * row + head % H * d;
    }
};

// Which keys a query sees, and what a weight is multiplied by: all and 1.
struct AllKeys {
    __device__ bool seen(int64_t, int, int) const { return true; }
    __device__ float factor(int64_t, int, int, int) const { return 1.0f; }
};

// keep (B, N) 0 or 1; a weight is dropped by a hash of its place in the (B H, N, N) table, as dropout.h does.
struct SomeKeys {
    const float* keep;
    int H;
    uint64_t first, limit;
    float kept;

    SomeKeys(const float* keep, int H, double rate, double seed)
        : keep(keep), H(H), first(mixed(uint64_t(seed) + 1)), limit(uint64_t(rate * 4294967296.0)),
          kept(float(1.0 / (1.0 - rate))) {}

    __host__ __device__ static uint64_t mixed(uint64_t x) {
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        return x ^ (x >> 31);
    }

    __device__ bool seen(int64_t head, int N, int j) const { return keep[head / H * N + j] != 0.0f; }

    __device__ float factor(int64_t head, int N, int i, int j) const {
        const uint64_t place = (uint64_t(head) * N + i) * N + j;
        return (mixed(first + place * 0x9E3779B97F4A7C15u) >> 32) < limit ? 0.0f : kept;
    }
};

template <class X, int D>
__device__ void load_row(const X* from, float (&to)[D], int d, bool inside, float factor) {
    for (int c = 0; c < D; c++) to[c] = inside && c < d ? float(from[c]) * factor : 0.0f;
}

// Rows `first` to `first + TILE` into shared memory, zeros behind the last.
template <class X, int D>
__device__ void load_tile(const X* from, int64_t row, float (*to)[D], int first, int N, int d) {
    for (int i = threadIdx.x; i < TILE * D; i += ROWS) {
        const int j = i / D, c = i % D;
        to[j][c] = first + j < N && c < d ? float(from[(first + j) * row + c]) : 0.0f;
    }
}

template <int D>
__device__ float dot(const float (&a)[D], const float (&b)[D]) {
    float sum = 0.0f;
    for (int c = 0; c < D; c++) sum += a[c] * b[c];
    return sum;
}

// out (B, N, D) and the logarithm of each row's sum of exponentials (B H, N), which the backward pass needs.
template <class X, int D, class Keys>
__global__ void forward_kernel(const X* qkv, X* out, float* logsum, int N, int H, int d, int causal, Keys mask) {
    __shared__ float keys[TILE][D], values[TILE][D];
    const Head in(blockIdx.x, N, H, d, 3), to(blockIdx.x, N, H, d, 1);
    const int row = blockIdx.y * ROWS + threadIdx.x;
    const int last = causal && int(blockIdx.y + 1) * ROWS < N ? int(blockIdx.y + 1) * ROWS : N;
    float q[D], mixed[D], scores[TILE], largest = NEVER, sum = 0.0f;
    load_row(qkv + in.at + row * in.row, q, d, row < N, rsqrtf(float(d)));
    for (int c = 0; c < D; c++) mixed[c] = 0.0f;
    for (int first = 0; first < last; first += TILE) {
        __syncthreads();
        load_tile(qkv + in.at + in.offset, in.row, keys, first, N, d);
        load_tile(qkv + in.at + 2 * in.offset, in.row, values, first, N, d);
        __syncthreads();
        float top = largest;
        for (int j = 0; j < TILE; j++) {
            const bool seen = first + j < N && (!causal || first + j <= row) && mask.seen(blockIdx.x, N, first + j);
            scores[j] = seen ? dot(q, keys[j]) : NEVER;
            top = fmaxf(top, scores[j]);
        }
        const float shrunk = expf(largest - top);
        sum *= shrunk;
        for (int c = 0; c < D; c++) mixed[c] *= shrunk;
        for (int j = 0; j < TILE; j++) {
            const float weight = scores[j] == NEVER ? 0.0f : expf(scores[j] - top);
            sum += weight;
            const float kept = weight * mask.factor(blockIdx.x, N, row, first + j);
            for (int c = 0; c < D; c++) mixed[c] += kept * values[j][c];
        }
        largest = top;
    }
    if (row >= N) return;
    for (int c = 0; c < D; c++)
        if (c < d) out[to.at + row * to.row + c] = X(mixed[c] / sum);
    logsum[int64_t(blockIdx.x) * N + row] = largest + logf(sum);
}

// delta = sum over c of grad * out, the part of the softmax's gradient that all of a row's scores share.
template <class X>
__global__ void delta_kernel(const X* out, const X* grad, float* delta, int64_t rows, int N, int H, int d) {
    const int64_t i = int64_t(blockIdx.x) * ROWS + threadIdx.x;
    if (i >= rows) return;
    const Head at(i / N, N, H, d, 1);
    const int64_t start = at.at + i % N * at.row;
    float sum = 0.0f;
    for (int c = 0; c < d; c++) sum += float(out[start + c]) * float(grad[start + c]);
    delta[i] = sum;
}

// A thread per query.
template <class X, int D, class Keys>
__global__ void query_gradient_kernel(const X* qkv, const X* grad, const float* logsum, const float* delta, X* grad_qkv,
                                      int N, int H, int d, int causal, Keys mask) {
    __shared__ float keys[TILE][D], values[TILE][D];
    const Head in(blockIdx.x, N, H, d, 3), from(blockIdx.x, N, H, d, 1);
    const int row = blockIdx.y * ROWS + threadIdx.x;
    const int last = causal && int(blockIdx.y + 1) * ROWS < N ? int(blockIdx.y + 1) * ROWS : N;
    const float scale = rsqrtf(float(d));
    float q[D], g[D], out[D];
    load_row(qkv + in.at + row * in.row, q, d, row < N, scale);
    load_row(grad + from.at + row * from.row, g, d, row < N, 1.0f);
    const float normal = row < N ? logsum[int64_t(blockIdx.x) * N + row] : 0.0f;
    const float shared = row < N ? delta[int64_t(blockIdx.x) * N + row] : 0.0f;
    for (int c = 0; c < D; c++) out[c] = 0.0f;
    for (int first = 0; first < last; first += TILE) {
        __syncthreads();
        load_tile(qkv + in.at + in.offset, in.row, keys, first, N, d);
        load_tile(qkv + in.at + 2 * in.offset, in.row, values, first, N, d);
        __syncthreads();
        for (int j = 0; j < TILE; j++) {
            if (first + j >= N || (causal && first + j > row)) break;
            if (!mask.seen(blockIdx.x, N, first + j)) continue;
            const float kept = mask.factor(blockIdx.x, N, row, first + j);
            const float change = expf(dot(q, keys[j]) - normal) * (dot(g, values[j]) * kept - shared);
            for (int c = 0; c < D; c++) out[c] += change * keys[j][c];
        }
    }
    if (row >= N) return;
    for (int c = 0; c < D; c++)
        if (c < d) grad_qkv[in.at + row * in.row + c] = X(out[c] * scale);
}

// A thread per key and its value.
template <class X, int D, class Keys>
__global__ void key_gradient_kernel(const X* qkv, const X* grad, const float* logsum, const float* delta, X* grad_qkv,
                                    int N, int H, int d, int causal, Keys mask) {
    __shared__ float queries[TILE][D], grads[TILE][D];
    const Head in(blockIdx.x, N, H, d, 3), from(blockIdx.x, N, H, d, 1);
    const int row = blockIdx.y * ROWS + threadIdx.x;
    const float scale = rsqrtf(float(d));
    const bool seen = row < N && mask.seen(blockIdx.x, N, row);
    float k[D], v[D], for_key[D], for_value[D];
    load_row(qkv + in.at + in.offset + row * in.row, k, d, row < N, scale);
    load_row(qkv + in.at + 2 * in.offset + row * in.row, v, d, row < N, 1.0f);
    for (int c = 0; c < D; c++) for_key[c] = for_value[c] = 0.0f;
    for (int first = causal ? int(blockIdx.y) * ROWS : 0; first < N; first += TILE) {
        __syncthreads();
        load_tile(qkv + in.at, in.row, queries, first, N, d);
        load_tile(grad + from.at, from.row, grads, first, N, d);
        __syncthreads();
        for (int j = 0; seen && j < TILE && first + j < N; j++) {
            if (causal && first + j < row) continue;
            const int64_t query = int64_t(blockIdx.x) * N + first + j;
            const float weight = expf(dot(k, queries[j]) - logsum[query]);
            const float kept = mask.factor(blockIdx.x, N, first + j, row);
            const float change = weight * (dot(v, grads[j]) * kept - delta[query]) * scale;
            for (int c = 0; c < D; c++) {
                for_value[c] += weight * kept * grads[j][c];
                for_key[c] += change * queries[j][c];
            }
        }
    }
    if (row >= N) return;
    for (int c = 0; c < D; c++)
        if (c < d) {
            grad_qkv[in.at + in.offset + row * in.row + c] = X(for_key[c]);
            grad_qkv[in.at + 2 * in.offset + row * in.row + c] = X(for_value[c]);
        }
}

inline dim3 blocks_of(int64_t B, int64_t H, int64_t N) { return dim3(unsigned(B * H), unsigned((N + ROWS - 1) / ROWS)); }

template <class X, int D, class Keys>
void forward_of(const X* qkv, X* out, float* logsum, int64_t B, int N, int H, int d, int causal, Keys mask) {
    JCLIP_LAUNCH((forward_kernel<X, D, Keys>), blocks_of(B, H, N), ROWS, qkv, out, logsum, N, H, d, causal, mask);
}

template <class X, int D, class Keys>
void backward_of(const X* qkv, const X* out, const float* logsum, const X* grad, X* grad_qkv, float* delta, int64_t B,
                 int N, int H, int d, int causal, Keys mask) {
    const int64_t rows = B * H * N;
    JCLIP_LAUNCH((delta_kernel<X>), dim3(unsigned((rows + ROWS - 1) / ROWS)), ROWS, out, grad, delta, rows, N, H, d);
    JCLIP_LAUNCH((query_gradient_kernel<X, D, Keys>), blocks_of(B, H, N), ROWS, qkv, grad, logsum, delta, grad_qkv, N, H,
                 d, causal, mask);
    JCLIP_LAUNCH((key_gradient_kernel<X, D, Keys>), blocks_of(B, H, N), ROWS, qkv, grad, logsum, delta, grad_qkv, N, H, d,
                 causal, mask);
}

template <class X, class Keys>
void forward_with(const X* qkv, X* out, float* logsum, int64_t B, int N, int64_t width, int H, int causal, Keys mask) {
    const int d = int(width / 3 / H);
    if (d <= 32) forward_of<X, 32>(qkv, out, logsum, B, N, H, d, causal, mask);
    else if (d <= 64) forward_of<X, 64>(qkv, out, logsum, B, N, H, d, causal, mask);
    else forward_of<X, 128>(qkv, out, logsum, B, N, H, d, causal, mask);
}

template <class X, class Keys>
void backward_with(const X* qkv, const X* out, const float* logsum, const X* grad, X* grad_qkv, float* delta, int64_t B,
                   int N, int64_t width, int H, int causal, Keys mask) {
    const int d = int(width / 3 / H);
    if (d <= 32) backward_of<X, 32>(qkv, out, logsum, grad, grad_qkv, delta, B, N, H, d, causal, mask);
    else if (d <= 64) backward_of<X, 64>(qkv, out, logsum, grad, grad_qkv, delta, B, N, H, d, causal, mask);
    else backward_of<X, 128>(qkv, out, logsum, grad, grad_qkv, delta, B, N, H, d, causal, mask);
}

template <class X>
void attention_forward(const X* qkv, X* out, float* logsum, int64_t B, int64_t N, int64_t width, double heads,
                       double causal) {
    forward_with(qkv, out, logsum, B, int(N), width, int(heads), causal != 0, AllKeys());
}

template <class X>
void attention_backward(const X* qkv, const X* out, const float* logsum, const X* grad, X* grad_qkv, float* delta,
                        int64_t B, int64_t N, int64_t width, double heads, double causal) {
    backward_with(qkv, out, logsum, grad, grad_qkv, delta, B, int(N), width, int(heads), causal != 0, AllKeys());
}

template <class X>
void attention_masked_forward(const X* qkv, const float* keys, X* out, float* logsum, int64_t B, int64_t N,
                              int64_t width, double heads, double rate, double seed) {
    const SomeKeys mask(keys, int(heads), rate, seed);
    forward_with(qkv, out, logsum, B, int(N), width, int(heads), 0, mask);
}

template <class X>
void attention_masked_backward(const X* qkv, const float* keys, const X* out, const float* logsum, const X* grad,
                               X* grad_qkv, float* delta, int64_t B, int64_t N, int64_t width, double heads,
                               double rate, double seed) {
    const SomeKeys mask(keys, int(heads), rate, seed);
    backward_with(qkv, out, logsum, grad, grad_qkv, delta, B, int(N), width, int(heads), 0, mask);
}

}  // namespace jclip
