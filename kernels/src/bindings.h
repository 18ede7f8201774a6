// What each part of the module registers.
#pragma once

#include <pybind11/pybind11.h>

namespace splat2d {

void register_fit(pybind11::module_& module);
void register_render(pybind11::module_& module);
void register_codec(pybind11::module_& module);

}  // namespace splat2d
