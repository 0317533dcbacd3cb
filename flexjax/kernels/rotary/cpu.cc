// The rotary cut on the CPU, called through XLA's foreign function interface; cpu_rotary.h says how.

#include "cpu_rotary.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::AnyBuffer>;

ffi::Error Rotary(ffi::ThreadPool pool, Floats x, Floats cos, Floats sin, Result q, Result k, Result v, int64_t isa) {
  Problem p{};
  p.x = x.typed_data(), p.cos = cos.typed_data(), p.sin = sin.typed_data();
  p.q = q->untyped_data(), p.k = k->untyped_data(), p.v = v->untyped_data();
  p.T = q->dimensions()[0], p.N = q->dimensions()[1], p.K = k->dimensions()[1], p.H = q->dimensions()[2];
  const auto parallel = [&](int64_t threads, int64_t n, const auto& f) { flexjax::ParallelFor(pool, threads, n, f); };
  if (q->element_type() == ffi::F32)
    Cut<float>(p, isa, pool.num_threads(), parallel);
  else
    Cut<Bf16>(p, isa, pool.num_threads(), parallel);
  return ffi::Error::Success();
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) XLA_FFI_Error* flexjax_rotary(XLA_FFI_CallFrame*);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(flexjax_rotary, Rotary,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()          // x
                                  .Arg<Floats>()          // cos
                                  .Arg<Floats>()          // sin
                                  .Ret<ffi::AnyBuffer>()  // q
                                  .Ret<ffi::AnyBuffer>()  // k
                                  .Ret<ffi::AnyBuffer>()  // v
                                  .Attr<int64_t>("isa"));
