// CUTLASS's product of 8-bit matrices on Hopper, a peer of `benchmarks.cuda_peers`:
// y = int8(scale · (x · wᵀ)), x (m, k) and w (n, k) int8, y (m, n) int8, int32 sums.
// Compiled by `benchmarks.cuda_pack` where CUTLASS's headers are; two tiles, the faster one counts.
#include <cutlass/cutlass.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

using namespace cute;

template <class Tile, class Cluster, class Schedule, class Ending>
struct Int8Product {
  using Rows = cutlass::layout::RowMajor;
  using Columns = cutlass::layout::ColumnMajor;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, int32_t, float, void, Rows, 16, int8_t, Rows,
      16, Ending>::CollectiveOp;
  using Main = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, int8_t, Rows, 16, int8_t, Columns, 16,
      int32_t, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename Epilogue::SharedStorage))>,
      Schedule>::CollectiveOp;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Main, Epilogue>>;

  // 0 when it was launched; no memory but what is given is used.
  static int run(void const* x, void const* w, void* y, int m, int n, int k, float scale,
                 void* memory, size_t size, cudaStream_t stream) {
    using Kernel = typename Gemm::GemmKernel;
    auto a = cutlass::make_cute_packed_stride(typename Kernel::StrideA{}, {m, k, 1});
    auto b = cutlass::make_cute_packed_stride(typename Kernel::StrideB{}, {n, k, 1});
    auto d = cutlass::make_cute_packed_stride(typename Kernel::StrideD{}, {m, n, 1});
    typename Gemm::Arguments given{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {m, n, k, 1},
        {static_cast<int8_t const*>(x), a, static_cast<int8_t const*>(w), b},
        {{scale, 0.0f}, nullptr, {}, static_cast<int8_t*>(y), d}};
    Gemm gemm;
    if (Gemm::get_workspace_size(given) > size) return -1;
    auto status = gemm.can_implement(given);
    if (status == cutlass::Status::kSuccess) status = gemm.initialize(given, memory, stream);
    if (status == cutlass::Status::kSuccess) status = gemm.run(stream);
    return static_cast<int>(status);
  }
};

using Large = Int8Product<Shape<_128, _256, _128>, Shape<_2, _1, _1>,
                      cutlass::gemm::KernelTmaWarpSpecializedCooperative,
                      cutlass::epilogue::TmaWarpSpecializedCooperative>;
using Small = Int8Product<Shape<_64, _128, _128>, Shape<_1, _1, _1>,
                      cutlass::gemm::KernelTmaWarpSpecializedPingpong,
                      cutlass::epilogue::TmaWarpSpecialized>;

extern "C" int cutlass_int8(int tile, void const* x, void const* w, void* y, int m, int n, int k,
                            float scale, void* memory, size_t size, void* stream) {
  auto s = static_cast<cudaStream_t>(stream);
  return tile ? Small::run(x, w, y, m, n, k, scale, memory, size, s)
              : Large::run(x, w, y, m, n, k, scale, memory, size, s);
}
