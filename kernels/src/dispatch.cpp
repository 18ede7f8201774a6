// Which engine this process uses.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "engine.h"
#include "splat2d/fit.h"

namespace splat2d {
namespace {

const Engine* supported(const std::string& name) {
  if (name == "portable") return &engine_portable();
#if defined(SPLAT2D_X86)
  __builtin_cpu_init();
  if (name == "avx2" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &engine_avx2();
  if (name == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
    return &engine_avx512();
#endif
  return nullptr;
}

}  // namespace

const Engine& engine() {
  const char* wanted = std::getenv("SPLAT2D_BACKEND");
  if (wanted != nullptr && *wanted != '\0') {
    if (const Engine* found = supported(wanted)) return *found;
    throw std::runtime_error(std::string("SPLAT2D_BACKEND=") + wanted +
                             ": this processor or this build does not support it; expected avx512, avx2 or portable");
  }
  for (const char* name : {"avx512", "avx2"}) {
    if (const Engine* found = supported(name)) return *found;
  }
  return engine_portable();
}

std::string backend() { return engine().name; }

}  // namespace splat2d
