// What the engines need of libtorch and neither burn nor tch offers: one arithmetic for
// CUDA, streams and events, and questions to the dispatcher. It uses no header of CUDA, so
// it is compiled against any libtorch. `shim.rs` is its only user.
//
// A function that can fail returns null, or a message that `ringleader_free_text` frees.

#include <ATen/core/Tensor.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/api/include/torch/version.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <string>

namespace {

// Runs `work`, and turns what it throws into a message.
template <class Work>
char* attempt(Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception without a message");
  }
}

c10::Device cuda(int index) {
  return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
}

// The stream that a handle names; null is the one on which this thread computes.
c10::Stream named(const void* stream, int device) {
  if (stream != nullptr) {
    return *static_cast<const c10::Stream*>(stream);
  }
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getStream(cuda(device));
}

// The operators that were called, while they are noted.
std::mutex noting;
at::CallbackHandle note_handle;
std::set<std::string>& noted() {
  static std::set<std::string> names;
  return names;
}

}  // namespace

extern "C" {

// Frees a message.
void ringleader_free_text(char* text) {
  std::free(text);
}

// The version of libtorch, which nobody frees.
const char* ringleader_version() {
  return TORCH_VERSION;
}

// Settings that CUDA's libraries read from the environment when they start: without a
// fixed workspace, cuBLAS is not deterministic. What a user has set stays. To be called
// before there are other threads.
void ringleader_prepare_process() {
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
}

// How CUDA computes, for the whole process. `deterministic`: an operation that has no
// deterministic kernel fails. `tf32`: products of f32 may round their factors to TF32.
// `benchmark`: cuDNN tries its kernels for each new shape and keeps the fastest one.
char* ringleader_arithmetic(bool deterministic, bool tf32, bool benchmark) {
  return attempt([&] {
    at::Context& context = at::globalContext();
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    context.setDeterministicFillUninitializedMemory(false);
    context.setDeterministicCuDNN(deterministic);
    context.setBenchmarkCuDNN(benchmark);
    context.setAllowTF32CuBLAS(tf32);
    context.setAllowTF32CuDNN(tf32);
  });
}

// Reads back what `ringleader_arithmetic` sets.
void ringleader_read_arithmetic(bool* deterministic, bool* tf32, bool* benchmark) {
  at::Context& context = at::globalContext();
  *deterministic = context.deterministicAlgorithms() && context.deterministicCuDNN();
  *tf32 = context.allowTF32CuBLAS() || context.allowTF32CuDNN();
  *benchmark = context.benchmarkCuDNN();
}

// Whether a CUDA device computes in bf16 itself.
char* ringleader_has_bf16(int device, bool* has) {
  return attempt([&] {
    c10::DeviceGuard guard(cuda(device));
    *has = at::detail::getCUDAHooks().supportsBFloat16ConvolutionWithCuDNNv8();
  });
}

// Whether an operator is known, and has a kernel for CUDA or is made of other operators.
char* ringleader_operator(const char* name, const char* overload, bool* known, bool* cuda) {
  return attempt([&] {
    auto found = c10::Dispatcher::singleton().findSchema({name, overload});
    *known = found.has_value();
    *cuda = found.has_value() && (found->hasKernelForDispatchKey(c10::DispatchKey::CUDA) ||
                                  found->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                                  found->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) ||
                                  found->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutogradNonFunctional));
  });
}

// From now on, notes the names of the operators that any thread calls.
char* ringleader_note_operators() {
  return attempt([] {
    noted().clear();
    auto note = [](const at::RecordFunction& function) -> std::unique_ptr<at::ObserverContext> {
      if (auto name = function.operator_name()) {
        std::lock_guard<std::mutex> guard(noting);
        noted().insert(name->name + " " + name->overload_name);
      }
      return nullptr;
    };
    note_handle = at::addGlobalCallback(at::RecordFunctionCallback(note).scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
  });
}

// Stops that, and returns the names: a line each, "name overload". `ringleader_free_text`
// frees them.
char* ringleader_noted_operators() {
  at::removeCallback(note_handle);
  std::lock_guard<std::mutex> guard(noting);
  std::string lines;
  for (const std::string& name : noted()) {
    lines += name + "\n";
  }
  return strdup(lines.c_str());
}

// A stream of a CUDA device beside the one that computes.
char* ringleader_stream(int device, void** stream) {
  return attempt([&] {
    c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    *stream = new c10::Stream(guard.getStreamFromGlobalPool(cuda(device), /*isHighPriority=*/false));
  });
}

// Frees the handle of a stream; libtorch keeps the stream for others.
void ringleader_free_stream(void* stream) {
  delete static_cast<c10::Stream*>(stream);
}

// An event that happens when all work that was given to a stream so far is done.
char* ringleader_event(const void* stream, int device, bool timed, void** event) {
  return attempt([&] {
    auto flag = timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT;
    auto made = std::make_unique<c10::Event>(c10::DeviceType::CUDA, flag);
    made->record(named(stream, device));
    *event = made.release();
  });
}

// Work that is given to a stream from now on begins after the event.
char* ringleader_begin_after(const void* event, const void* stream, int device) {
  return attempt([&] { static_cast<const c10::Event*>(event)->block(named(stream, device)); });
}

// Waits, on this thread, until the event has happened.
char* ringleader_wait(const void* event) {
  return attempt([&] { static_cast<const c10::Event*>(event)->synchronize(); });
}

// Whether the event has happened.
char* ringleader_happened(const void* event, bool* happened) {
  return attempt([&] { *happened = static_cast<const c10::Event*>(event)->query(); });
}

// Milliseconds between two timed events that have happened.
char* ringleader_elapsed(const void* from, const void* to, double* ms) {
  return attempt([&] { *ms = static_cast<const c10::Event*>(from)->elapsedTime(*static_cast<const c10::Event*>(to)); });
}

// Frees an event, whether it has happened or not.
void ringleader_free_event(void* event) {
  delete static_cast<c10::Event*>(event);
}

// Copies a tensor to another one on a stream, without waiting for it. In host memory, only
// pinned memory is copied so.
char* ringleader_copy(void* to, const void* from, const void* stream) {
  return attempt([&] {
    c10::StreamGuard guard(*static_cast<const c10::Stream*>(stream));
    at::NoGradGuard no_grad;
    static_cast<at::Tensor*>(to)->copy_(*static_cast<const at::Tensor*>(from), /*non_blocking=*/true);
  });
}

// The gradients of so many inputs where that of `root` is `slope`. One that the root does not
// depend on is an undefined tensor. The graph is gone after it.
char* ringleader_backward(const void* root, const void* slope, const void* const* inputs, size_t count, void** gradients) {
  return attempt([&] {
    torch::autograd::variable_list leaves;
    for (size_t i = 0; i < count; ++i) {
      leaves.push_back(*static_cast<const at::Tensor*>(inputs[i]));
    }
    const auto found = torch::autograd::grad({*static_cast<const at::Tensor*>(root)}, leaves, {*static_cast<const at::Tensor*>(slope)},
                                             /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < count; ++i) {
      gradients[i] = new at::Tensor(found[i]);
    }
  });
}

}  // extern "C"
