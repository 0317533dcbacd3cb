// Ragged paged attention on the CPU, called through XLA's foreign function interface; cpu_attention.h says how.

#include <string>

#include "cpu_attention.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using Ints = ffi::Buffer<ffi::S32>;

// The batch and the options; pages are the caller's to set.
Problem ProblemOf(ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, Ints query_starts, Ints kv_lengths,
                  Ints page_table, ffi::Result<ffi::AnyBuffer> out, float scale, float softcap, int64_t window) {
  Problem p{};
  p.q = q.untyped_data(), p.k = k.untyped_data(), p.v = v.untyped_data(), p.out = out->untyped_data();
  p.query_starts = query_starts.typed_data(), p.kv_lengths = kv_lengths.typed_data();
  p.page_table = page_table.typed_data();
  p.T = q.dimensions()[0], p.N = q.dimensions()[1], p.H = q.dimensions()[2], p.K = k.dimensions()[1];
  p.B = page_table.dimensions()[0], p.P = page_table.dimensions()[1];
  p.scale = scale, p.softcap = softcap, p.window = (int)window;
  return p;
}

template <typename Page>
ffi::Error ServeOn(ffi::ThreadPool& pool, const Problem& p, bool wide, int64_t isa) {
  const auto parallel = [&](int64_t threads, int64_t n, const auto& f) { flexjax::ParallelFor(pool, threads, n, f); };
  const int64_t threads = pool.num_threads();
  const std::string wrong =
      wide ? Serve<float, Page>(p, isa, threads, parallel) : Serve<Bf16, Page>(p, isa, threads, parallel);
  return wrong.empty() ? ffi::Error::Success() : ffi::Error::InvalidArgument(wrong);
}

ffi::Error NotInPlace() {
  return ffi::Error::Internal("ragged_paged_attention: kv_pages must be updated in place.");
}

ffi::Error RaggedPagedAttention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                                ffi::AnyBuffer pages, Ints query_starts, Ints kv_lengths, Ints page_table,
                                ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> new_pages, float scale,
                                float softcap, int64_t window, int64_t isa) {
  if (pages.untyped_data() != new_pages->untyped_data()) return NotInPlace();
  Problem p = ProblemOf(q, k, v, query_starts, kv_lengths, page_table, out, scale, softcap, window);
  p.pages = new_pages->untyped_data();
  p.num_pages = pages.dimensions()[0], p.page_size = pages.dimensions()[1];
  const bool wide = q.element_type() == ffi::F32;
  switch (pages.element_type()) {
    case ffi::F32: return ServeOn<float>(pool, p, wide, isa);
    default: return ServeOn<Bf16>(pool, p, wide, isa);
  }
}

ffi::Error ScaledPagedAttention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                                ffi::AnyBuffer values, ffi::Buffer<ffi::F32> scales, ffi::Buffer<ffi::U32> clipped,
                                Ints query_starts, Ints kv_lengths, Ints page_table, ffi::Result<ffi::AnyBuffer> out,
                                ffi::Result<ffi::AnyBuffer> new_values, ffi::Result<ffi::Buffer<ffi::U32>> new_clipped,
                                float scale, float softcap, int64_t window, int64_t isa) {
  if (values.untyped_data() != new_values->untyped_data() || clipped.untyped_data() != new_clipped->untyped_data())
    return NotInPlace();
  Problem p = ProblemOf(q, k, v, query_starts, kv_lengths, page_table, out, scale, softcap, window);
  p.pages = new_values->untyped_data(), p.units = scales.typed_data(), p.clipped = new_clipped->typed_data();
  p.num_pages = values.dimensions()[0], p.page_size = values.dimensions()[1];
  const bool wide = q.element_type() == ffi::F32;
  if (values.element_type() == ffi::F8E4M3FN) return ServeOn<Float8>(pool, p, wide, isa);
  return ServeOn<Int8>(pool, p, wide, isa);
}

ffi::Error Int4PagedAttention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                              ffi::AnyBuffer values, ffi::AnyBuffer scales, Ints query_starts, Ints kv_lengths,
                              Ints page_table, ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> new_values,
                              ffi::Result<ffi::AnyBuffer> new_scales, float scale, float softcap, int64_t window,
                              int64_t isa) {
  if (values.untyped_data() != new_values->untyped_data() || scales.untyped_data() != new_scales->untyped_data())
    return NotInPlace();
  Problem p = ProblemOf(q, k, v, query_starts, kv_lengths, page_table, out, scale, softcap, window);
  p.pages = new_values->untyped_data(), p.scales = (Bf16*)new_scales->untyped_data();
  p.num_pages = values.dimensions()[0], p.page_size = values.dimensions()[2];
  return ServeOn<Int4>(pool, p, q.element_type() == ffi::F32, isa);
}

}  // namespace

extern "C" {
__attribute__((visibility("default"))) XLA_FFI_Error* flexjax_ragged_paged_attention(XLA_FFI_CallFrame*);
__attribute__((visibility("default"))) XLA_FFI_Error* flexjax_int4_paged_attention(XLA_FFI_CallFrame*);
__attribute__((visibility("default"))) XLA_FFI_Error* flexjax_scaled_paged_attention(XLA_FFI_CallFrame*);
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(flexjax_ragged_paged_attention, RaggedPagedAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // q
                                  .Arg<ffi::AnyBuffer>()  // k
                                  .Arg<ffi::AnyBuffer>()  // v
                                  .Arg<ffi::AnyBuffer>()  // kv_pages
                                  .Arg<Ints>()            // query_starts
                                  .Arg<Ints>()            // kv_lengths
                                  .Arg<Ints>()            // page_table
                                  .Ret<ffi::AnyBuffer>()  // out
                                  .Ret<ffi::AnyBuffer>()  // kv_pages
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window")
                                  .Attr<int64_t>("isa"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(flexjax_int4_paged_attention, Int4PagedAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // q
                                  .Arg<ffi::AnyBuffer>()  // k
                                  .Arg<ffi::AnyBuffer>()  // v
                                  .Arg<ffi::AnyBuffer>()  // kv_pages.values
                                  .Arg<ffi::AnyBuffer>()  // kv_pages.scales
                                  .Arg<Ints>()            // query_starts
                                  .Arg<Ints>()            // kv_lengths
                                  .Arg<Ints>()            // page_table
                                  .Ret<ffi::AnyBuffer>()  // out
                                  .Ret<ffi::AnyBuffer>()  // kv_pages.values
                                  .Ret<ffi::AnyBuffer>()  // kv_pages.scales
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window")
                                  .Attr<int64_t>("isa"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(flexjax_scaled_paged_attention, ScaledPagedAttention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()          // q
                                  .Arg<ffi::AnyBuffer>()          // k
                                  .Arg<ffi::AnyBuffer>()          // v
                                  .Arg<ffi::AnyBuffer>()          // kv_pages.values
                                  .Arg<ffi::Buffer<ffi::F32>>()   // kv_pages.scales
                                  .Arg<ffi::Buffer<ffi::U32>>()   // kv_pages.clipped
                                  .Arg<Ints>()                    // query_starts
                                  .Arg<Ints>()                    // kv_lengths
                                  .Arg<Ints>()                    // page_table
                                  .Ret<ffi::AnyBuffer>()          // out
                                  .Ret<ffi::AnyBuffer>()          // kv_pages.values
                                  .Ret<ffi::Buffer<ffi::U32>>()   // kv_pages.clipped
                                  .Attr<float>("scale")
                                  .Attr<float>("softcap")
                                  .Attr<int64_t>("window")
                                  .Attr<int64_t>("isa"));
