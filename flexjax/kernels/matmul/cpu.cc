// Rows times a packed weight on the CPU, called through XLA's foreign function interface; cpu_product.h says how.

#include <atomic>
#include <string>

#include "cpu_product.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Floats = ffi::Buffer<ffi::F32>;

const float* OrNull(const Floats& buffer) { return buffer.element_count() ? buffer.typed_data() : nullptr; }

ffi::Error PackedMatmul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer weight, Floats scale, Floats norm,
                        Floats bias, ffi::AnyBuffer residual, ffi::Result<ffi::AnyBuffer> out, float eps,
                        int64_t outputs, int64_t format, int64_t activation, bool gated, bool int8_rows, int64_t isa) {
  Product p{};
  p.x = x.untyped_data(), p.x_wide = x.element_type() == ffi::F32;
  p.T = x.dimensions()[0], p.D = x.dimensions()[1], p.F = outputs;
  p.norm = OrNull(norm), p.eps = eps;
  p.format = (Format)format, p.int8_rows = int8_rows;
  p.weight = (const uint8_t*)weight.untyped_data(), p.scale = OrNull(scale), p.bias = OrNull(bias);
  p.residual = residual.element_count() ? residual.untyped_data() : nullptr;
  p.out = out->untyped_data(), p.out_wide = out->element_type() == ffi::F32;
  p.activation = (Activation)activation, p.gated = gated;

  const int64_t panels = (p.F + kPanel - 1) / kPanel, elements = ElementsOfChunk(p.format);
  const int64_t chunks = (p.D + elements - 1) / elements;
  const int64_t scales = p.format == kInt8 ? panels * kPanel : p.format == kInt4 ? panels * chunks * kPanel : 0;
  const auto wrong = [](const char* what, int64_t is, int64_t want) {
    return ffi::Error::InvalidArgument("packed_matmul: " + std::string(what) + " has " + std::to_string(is) +
                                       ", and must have " + std::to_string(want) + ".");
  };
  const int64_t bytes = (int64_t)weight.size_bytes(), result = p.T * p.columns();
  if (bytes != panels * chunks * BytesOfChunk(p.format))
    return wrong("bytes of the weight", bytes, panels * chunks * BytesOfChunk(p.format));
  if ((int64_t)scale.element_count() != scales) return wrong("scale", scale.element_count(), scales);
  if (p.norm && (int64_t)norm.element_count() != p.D) return wrong("norm", norm.element_count(), p.D);
  if (p.bias && (int64_t)bias.element_count() != panels * kPanel)
    return wrong("bias", bias.element_count(), panels * kPanel);
  if (p.residual && (int64_t)residual.element_count() != result)
    return wrong("residual", residual.element_count(), result);
  if ((int64_t)out->element_count() != result) return wrong("the result", out->element_count(), result);

  Run(p, isa, pool.num_threads(), [&](int64_t threads, int64_t n, const auto& f) {
    flexjax::ParallelFor(pool, threads, n, f);
  });
  return ffi::Error::Success();
}

// The limit of a product with few rows: the same bytes read by the same threads.
ffi::Error ReadMemory(ffi::ThreadPool pool, ffi::Buffer<ffi::U8> bytes, ffi::Result<ffi::Buffer<ffi::U32>> out) {
  constexpr int64_t kPart = 256 << 10;
  const int64_t size = bytes.element_count(), parts = size / kPart;
  std::atomic<uint32_t> sum{0};
  const auto read = [&](int64_t i) { sum ^= ReadBytes(bytes.typed_data() + i * kPart, kPart); };
  flexjax::ParallelFor(pool, pool.num_threads(), parts, read);
  out->typed_data()[0] = sum ^ ReadBytes(bytes.typed_data() + parts * kPart, size - parts * kPart);
  return ffi::Error::Success();
}

}  // namespace

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* flexjax_packed_matmul(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(flexjax_packed_matmul, PackedMatmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // x
                                  .Arg<ffi::AnyBuffer>()  // weight
                                  .Arg<Floats>()          // scale
                                  .Arg<Floats>()          // norm
                                  .Arg<Floats>()          // bias
                                  .Arg<ffi::AnyBuffer>()  // residual
                                  .Ret<ffi::AnyBuffer>()  // out
                                  .Attr<float>("eps")
                                  .Attr<int64_t>("outputs")
                                  .Attr<int64_t>("format")
                                  .Attr<int64_t>("activation")
                                  .Attr<bool>("gated")
                                  .Attr<bool>("int8_rows")
                                  .Attr<int64_t>("isa"));

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* flexjax_read_memory(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(flexjax_read_memory, ReadMemory,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::U8>>()
                                  .Ret<ffi::Buffer<ffi::U32>>());

// The best of `InstructionSet` that this processor has, up to the one wanted.
extern "C" __attribute__((visibility("default"))) int64_t flexjax_instruction_set(int64_t wanted) {
  return static_cast<int64_t>(Best(wanted));
}
