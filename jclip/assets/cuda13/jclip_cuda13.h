// Forced into all that Jittor 1.3.11 compiles with CUDA >= 13 or cuDNN >= 9: what those removed and Jittor still names.
#pragma once
#if defined(HAS_CUDA) && defined(__cplusplus)
#include <cuda_runtime.h>

#if CUDART_VERSION >= 13000
// extern/cuda/inc/helper_cuda.h reads two fields that are gone, in functions that Jittor never calls.
struct jclip_device_prop : cudaDeviceProp {
  int computeMode = 0;
  int clockRate = 1;
};
#define cudaDeviceProp jclip_device_prop
#endif

#if __has_include(<cudnn.h>)
#include <cudnn.h>
#if CUDNN_MAJOR >= 9
// The v6 RNN functions are gone; without their names three files don't compile and all of cuDNN is lost to Jittor.
#define JCLIP_GONE(name) \
  template <class... A>  \
  inline cudnnStatus_t name(A...) { return CUDNN_STATUS_NOT_SUPPORTED; }
JCLIP_GONE(cudnnSetRNNDescriptor_v6)
JCLIP_GONE(cudnnGetRNNParamsSize)
JCLIP_GONE(cudnnGetRNNWorkspaceSize)
JCLIP_GONE(cudnnGetRNNTrainingReserveSize)
JCLIP_GONE(cudnnGetRNNLinLayerBiasParams)
JCLIP_GONE(cudnnGetRNNLinLayerMatrixParams)
JCLIP_GONE(cudnnRNNForwardTraining)
JCLIP_GONE(cudnnRNNForwardInference)
JCLIP_GONE(cudnnRNNBackwardData)
JCLIP_GONE(cudnnRNNBackwardWeights)
#endif
#endif

#if defined(__CUDACC__) && CUDART_VERSION >= 13000
// CCCL 3 removed three names of cub that Jittor's softmax and where kernels use.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
namespace cub {
struct Max {
  template <class T>
  __host__ __device__ T operator()(const T& a, const T& b) const { return b > a ? b : a; }
};
template <class T, class Offset = long>
using CountingInputIterator = thrust::counting_iterator<T>;
template <class V, class Op, class It, class Offset = long>
using TransformInputIterator = thrust::transform_iterator<Op, It, V>;
}  // namespace cub
#endif
#endif
