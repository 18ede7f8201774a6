// splat2d._core: a table of contents.
#include "bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "Native part of splat2d; use the functions of splat2d, which check their arguments.";
  splat2d::register_fit(module);
  splat2d::register_render(module);
  splat2d::register_codec(module);
}
