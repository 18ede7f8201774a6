#include <cmath>

#include "bind_arrays.h"
#include "bindings.h"
#include "memory.h"
#if defined(SPLAT2D_HAS_CUDA)
#include "splat2d/fit_cuda.h"
#endif

namespace splat2d {
namespace {

FitOptions options_of(const py::dict& settings) {
  FitOptions o;
  const std::string init = settings["init"].cast<std::string>();
  const std::string optimizer = settings["optimizer"].cast<std::string>();
  o.init = init == "grid" ? Init::grid : Init::adaptive;
  o.optimizer = optimizer == "adam" ? Optimizer::adam : Optimizer::natural;
  o.num_iters = settings["num_iters"].cast<int>();
  o.lr_position = settings["lr_position"].cast<float>();
  o.lr_shape = settings["lr_shape"].cast<float>();
  o.lr_color = settings["lr_color"].cast<float>();
  o.lr_final = settings["lr_final"].cast<float>();
  o.beta1 = settings["beta1"].cast<float>();
  o.beta2 = settings["beta2"].cast<float>();
  o.epsilon = settings["epsilon"].cast<float>();
  o.lambda_color = settings["lambda_color"].cast<float>();
  o.prune_score = settings["prune_score"].cast<std::string>() == "loss" ? PruneScore::loss : PruneScore::luminance;
  o.prune_to = settings["prune_to"].cast<int>();
  o.prune_threshold = settings["prune_threshold"].cast<float>();
  o.refit_iters = settings["refit_iters"].cast<int>();
  o.color_steps = settings["color_steps"].cast<int>();
  o.start_share = settings["start_share"].cast<float>();
  o.grow_first = settings["grow_first"].cast<float>();
  o.grow_last = settings["grow_last"].cast<float>();
  o.move_share = settings["move_share"].cast<float>();
  o.move_last = settings["move_last"].cast<float>();
  o.move_steps = settings["move_steps"].cast<int>();
  o.grow_steps = settings["grow_steps"].cast<int>();
  o.scale_min = settings["scale_min"].cast<float>();
  o.target_psnr = settings["target_psnr"].cast<float>();
  o.plateau = settings["plateau"].cast<float>();
  o.seed = settings["seed"].cast<std::uint64_t>();
  return o;
}

using Fit = bool (*)(const FitInput&, const FitOptions&, int, const FitOutput&, const Poll&);

Fit fitter(const std::string& device) {
  if (device == "cpu") return &fit;
#if defined(SPLAT2D_HAS_CUDA)
  if (device == "cuda") return &fit_cuda;
#endif
  throw py::value_error("this build has no device " + device);
}

bool has_cuda() {
#if defined(SPLAT2D_HAS_CUDA)
  return cuda_available();
#else
  return false;
#endif
}

#if defined(SPLAT2D_HAS_CUDA)
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
#endif

// start: None, or (means [B, M, 2], cholesky [B, M, 3], colors [B, M, 3], counts [B]). numbers: None, or [B].
// metric: None, or [K, 3 P^2].
py::tuple fit_arrays(const Array<std::uint8_t>& images, int num_gaussians, const py::object& numbers,
                     const py::object& start, const py::object& metric, const py::dict& settings, int threads,
                     const std::string& device, const py::object& progress) {
  const Fit run = fitter(device);
  expect(images, {-1, -1, -1, 3}, "images uint8 [B, H, W, 3]");
  const py::ssize_t batch = images.shape(0), n = num_gaussians;
  Array<float> means({batch, n, py::ssize_t{2}}), cholesky({batch, n, py::ssize_t{3}});
  Array<float> colors({batch, n, py::ssize_t{3}}), psnr(batch);
  Array<std::int32_t> counts(batch), iters(batch);
  const FitOutput out{means.mutable_data(), cholesky.mutable_data(), colors.mutable_data(), counts.mutable_data(),
                      psnr.mutable_data(), iters.mutable_data()};
  const FitOptions options = options_of(settings);
  FitInput input{images.data(), picture_shape(images), num_gaussians};
  Array<std::int32_t> given_numbers, start_counts;
  if (!numbers.is_none()) {
    given_numbers = numbers.cast<Array<std::int32_t>>();
    expect(given_numbers, {batch}, "numbers int32 [B]");
    input.counts = given_numbers.data();
  }
  Array<float> start_arrays[3];
  Splats from{};
  if (!start.is_none()) {
    const py::tuple parts = start.cast<py::tuple>();
    for (std::size_t i = 0; i < 3; ++i) {
      start_arrays[i] = parts[i].cast<Array<float>>();
      expect(start_arrays[i], {batch, i == 0 ? py::ssize_t{-1} : start_arrays[0].shape(1), i == 0 ? 2 : 3},
             "start float32 [B, M, 2 or 3]");
    }
    start_counts = parts[3].cast<Array<std::int32_t>>();
    expect(start_counts, {batch}, "start's counts int32 [B]");
    from = {start_arrays[0].data(), start_arrays[1].data(), start_arrays[2].data(), start_counts.data(),
            static_cast<int>(start_arrays[0].shape(1))};
    input.start = &from;
  }
  Array<float> metric_rows;
  Metric weighing{};
  if (!metric.is_none()) {
    metric_rows = metric.cast<Array<float>>();
    expect(metric_rows, {-1, -1}, "metric float32 [K, 3 P^2]");
    const int patch = static_cast<int>(std::lround(std::sqrt(static_cast<double>(metric_rows.shape(1)) / 3.0)));
    if (device != "cpu" || patch < 1 || metric_rows.shape(1) != 3 * patch * patch ||
        input.shape.height % patch != 0 || input.shape.width % patch != 0) {
      throw py::value_error("metric: not for this device, or its patches do not tile the pictures");
    }
    weighing = {metric_rows.data(), static_cast<int>(metric_rows.shape(0)), patch};
    input.metric = &weighing;
  }
  without_gil(progress, [&](const Poll& poll) { run(input, options, threads, out, poll); });
  return py::make_tuple(means, cholesky, colors, counts, psnr, iters);
}

}  // namespace

void register_fit(py::module_& module) {
  module.def("fit", &fit_arrays, py::arg("images"), py::arg("num_gaussians"), py::arg("numbers"),
             py::arg("start"), py::arg("metric"), py::arg("settings"), py::arg("threads"), py::arg("device"),
             py::arg("progress"));
  module.def("has_cuda", &has_cuda);
  module.attr("built_with_cuda") = kBuiltWithCuda;
  module.def("backend", &backend);
  module.def("peak_bytes", &peak_bytes);
  module.def("reset_peak_bytes", &reset_peak_bytes);
}

}  // namespace splat2d
