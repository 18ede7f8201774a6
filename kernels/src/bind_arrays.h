// NumPy arrays at the boundary, and a poll that lets Python interrupt native work.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "splat2d/fit.h"

namespace splat2d {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// "float32 [3, 4]"
inline std::string describe(const py::array& array) {
  std::string text = py::str(array.dtype()).cast<std::string>() + " [";
  for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
  return text + "]";
}

// The last line of defence: splat2d's Python functions report mismatches in the user's terms.
inline void expect(const py::array& array, std::initializer_list<py::ssize_t> shape, const char* what) {
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t axis = 0;
  for (const py::ssize_t size : shape) same = same && (size < 0 || array.shape(axis) == size), ++axis;
  if (!same) throw py::value_error(std::string("expected ") + what + ", got " + describe(array));
}

// Runs native work without the GIL; signals and the callback are looked at about every 50 ms. Re-throws what they raise.
template <typename Work>
void without_gil(const py::object& progress, const Work& work) {
  bool raised = false;
  py::error_already_set* error = nullptr;
  {
    const py::gil_scoped_release released;
    const Poll poll = [&](int done) {
      const py::gil_scoped_acquire held;
      if (PyErr_CheckSignals() != 0) {
        raised = true;
        error = new py::error_already_set();
        return false;
      }
      if (progress.is_none()) return true;
      try {
        progress(done);
      } catch (const py::error_already_set& caught) {
        raised = true;
        error = new py::error_already_set(caught);
        return false;
      }
      return true;
    };
    work(poll);
  }
  if (raised) {
    const py::error_already_set copy(*error);
    delete error;
    throw py::error_already_set(copy);
  }
}

inline PictureShape picture_shape(const py::array& pictures) {
  return {static_cast<int>(pictures.shape(0)), static_cast<int>(pictures.shape(1)),
          static_cast<int>(pictures.shape(2))};
}

}  // namespace splat2d
