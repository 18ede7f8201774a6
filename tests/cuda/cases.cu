// What the tests of the CUDA code run: one case a process, by g++ through emulated_cuda.h or by nvcc on a device.
//
//   cases IN OUT mode=fit|moments|halt key=value...
//
// IN holds uint8 images [B, H, W, 3], then float32 means [.., 2], cholesky [.., 3], colors [.., 3]: for mode=moments the N
// of its one picture, for mode=fit with start=S those [B, S] to start from. OUT receives for fit float32 means, cholesky, colors, psnr and int32 counts, iters; for moments float32
// [N, 8] and the squared error; mode=halt, emulated, wants neither. The emulated program prints how often it allocated.
#include <fstream>
#include <iostream>
#include <map>

#include "fit_cuda.cu"

namespace {

using Settings = std::map<std::string, double>;

std::vector<char> bytes_of(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

template <typename T>
void write(std::ofstream& file, const std::vector<T>& values) {
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
}

splat2d::FitOptions options_of(Settings& s) {
  splat2d::FitOptions o;
  const bool natural = s["natural"] != 0;
  o.init = natural ? splat2d::Init::adaptive : splat2d::Init::grid;
  o.optimizer = natural ? splat2d::Optimizer::natural : splat2d::Optimizer::adam;
  o.num_iters = static_cast<int>(s["num_iters"]);
  o.lr_position = static_cast<float>(s["lr_position"]);
  o.lr_shape = static_cast<float>(s["lr_shape"]);
  o.lr_color = static_cast<float>(s["lr_color"]);
  o.lr_final = static_cast<float>(s["lr_final"]);
  o.beta1 = static_cast<float>(s["beta1"]);
  o.beta2 = static_cast<float>(s["beta2"]);
  o.lambda_color = static_cast<float>(s["lambda_color"]);
  o.color_steps = static_cast<int>(s["color_steps"]);
  o.scale_min = static_cast<float>(s["scale_min"]);
  o.start_share = static_cast<float>(s["start_share"]);
  o.grow_first = static_cast<float>(s["grow_first"]);
  o.grow_last = static_cast<float>(s["grow_last"]);
  o.grow_steps = static_cast<int>(s["grow_steps"]);
  o.move_share = static_cast<float>(s["move_share"]);
  o.move_last = static_cast<float>(s["move_last"]);
  o.move_steps = static_cast<int>(s["move_steps"]);
  o.prune_score = s["by_loss"] != 0 ? splat2d::PruneScore::loss : splat2d::PruneScore::luminance;
  o.prune_to = static_cast<int>(s["prune_to"]);
  o.prune_threshold = static_cast<float>(s["prune_threshold"]);
  o.refit_iters = static_cast<int>(s["refit_iters"]);
  return o;
}

void run_fit(const std::vector<char>& in, std::ofstream& file, splat2d::PictureShape shape, int n, Settings& s) {
  const splat2d::FitOptions options = options_of(s);
  const std::size_t batch = static_cast<std::size_t>(shape.batch), all = batch * static_cast<std::size_t>(n);
  std::vector<float> means(all * 2), cholesky(all * 3), colors(all * 3), psnr(batch);
  std::vector<std::int32_t> counts(batch), iters(batch);
  int looks = static_cast<int>(s["stop_after"]);
  const splat2d::Poll poll = [&](int) { return s["stop_after"] == 0 || --looks > 0; };
  splat2d::FitInput input{reinterpret_cast<const std::uint8_t*>(in.data()), shape, n};
  const std::size_t given = batch * static_cast<std::size_t>(s["start"]);
  std::vector<float> splats(given * 8);
  const splat2d::Splats start{splats.data(), splats.data() + 2 * given, splats.data() + 5 * given, nullptr,
                              static_cast<int>(s["start"])};
  if (given > 0) {
    std::memcpy(splats.data(), in.data() + in.size() - splats.size() * sizeof(float), splats.size() * sizeof(float));
    input.start = &start;
  }
  const bool finished =
      splat2d::fit_cuda(input, options, 2,
                        {means.data(), cholesky.data(), colors.data(), counts.data(), psnr.data(), iters.data()}, poll);
  if (!finished) throw std::runtime_error("stopped");
  write(file, means), write(file, cholesky), write(file, colors), write(file, psnr);
  write(file, counts), write(file, iters);
}

// The moments of one picture's Gaussians as the tile kernel leaves them, added up here.
void run_moments(const std::vector<char>& in, std::ofstream& file, splat2d::PictureShape shape, int n) {
  using namespace splat2d;
  const std::size_t size = static_cast<std::size_t>(shape.height) * shape.width * 3, count = static_cast<std::size_t>(n);
  const int tiles = tiles_of_picture(shape.height, shape.width);
  const long long slots = static_cast<long long>(n) * tiles;
  std::vector<float> splats(count * 8);
  std::memcpy(splats.data(), in.data() + size, splats.size() * sizeof(float));
  std::vector<float> param(count * 8);
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t k = 0; k < 2; ++k) param[k * count + i] = splats[i * 2 + k];
    for (std::size_t k = 0; k < 3; ++k) {
      param[(2 + k) * count + i] = splats[count * 2 + i * 3 + k];
      param[(5 + k) * count + i] = splats[count * 5 + i * 3 + k];
    }
  }
  const Stream stream;
  DeviceArray<std::uint8_t> images(size);
  DeviceArray<float> d_param(param.size()), partial(static_cast<std::size_t>(slots) * 8);
  DeviceArray<float> tile_errors(static_cast<std::size_t>(tiles));
  DeviceArray<DeviceGaussian> gaussians(count);
  DeviceArray<Listed> listed(count);
  DeviceArray<int> dirty(1), active(1), counts(1), tile_counts(static_cast<std::size_t>(tiles));
  DeviceArray<TileEntry> entries(count * static_cast<std::size_t>(tiles));
  DeviceArray<Control> control(1);
  DeviceChunk d{};
  d.images = images.data(), d.param = d_param.data(), d.partial = partial.data(), d.tile_errors = tile_errors.data();
  d.gaussians = gaussians.data(), d.listed = listed.data(), d.dirty = dirty.data(), d.active = active.data();
  d.counts = counts.data(), d.tile_counts = tile_counts.data(), d.entries = entries.data();
  d.control = control.data(), d.slot_capacity = slots, d.list_capacity = n, d.num_gaussians = n;
  d.height = shape.height, d.width = shape.width, d.tiles_x = tiles_across(shape.width), d.tiles = tiles, d.adam = true;
  images.upload(reinterpret_cast<const std::uint8_t*>(in.data()), size, stream);
  d_param.upload(param.data(), param.size(), stream);
  counts.upload(&n, 1, stream);
  control.fill(0, stream), dirty.fill(1, stream), active.fill(1, stream);
  SPLAT2D_LAUNCH(pack, grid(blocks(n, kUpdateBlock)), dim3(kUpdateBlock), stream.get(), d);
  SPLAT2D_LAUNCH(place, grid(1), dim3(kBlock), stream.get(), d);
  SPLAT2D_LAUNCH(list, grid(blocks(tiles, kWarps)), dim3(kBlock), stream.get(), d);
  SPLAT2D_LAUNCH(fit_tile, grid(tiles), dim3(kBlock), stream.get(), d, true);
  check(cudaGetLastError(), "launch");
  std::vector<float> all(static_cast<std::size_t>(slots) * 8), errors(static_cast<std::size_t>(tiles));
  std::vector<Listed> where(count);
  partial.download(all.data(), all.size(), stream);
  listed.download(where.data(), count, stream);
  tile_errors.download(errors.data(), errors.size(), stream);
  stream.wait();
  std::vector<float> moments(count * 8 + 1);
  for (std::size_t i = 0; i < count; ++i) {
    const Listed& l = where[i];
    const int used = (l.x1 - l.x0 + 1) * (l.y1 - l.y0 + 1);
    for (int s = 0; s < used * 8; ++s) {
      moments[i * 8 + static_cast<std::size_t>(s % 8)] += all[static_cast<std::size_t>(l.start) * 8 + static_cast<std::size_t>(s)];
    }
  }
  for (const float error : errors) moments[count * 8] += error;
  write(file, moments);
}

#ifdef SPLAT2D_EMULATED_CUDA
// The host's stop is seen by the later half of a block's threads alone.
template <auto kernel, typename... Arguments>
void halfway(splat2d::DeviceChunk d, Arguments... arguments) {
  if (threadIdx.x == blockDim.x / 2) d.control->stop = 1;
  kernel(d, arguments...);
}

// Every kernel with a barrier or an exchange between threads: all of a block's threads must leave together.
void run_halt() {
  using namespace splat2d;
  const Stream stream;
  DeviceArray<Control> control(1);
  DeviceArray<int> ones(1);
  DeviceChunk d{};
  d.control = control.data(), d.counts = d.active = d.placing = ones.data();
  ones.fill(1, stream);
  const auto run = [&](auto kernel, int threads, auto... arguments) {
    control.fill(0, stream);
    SPLAT2D_LAUNCH(kernel, grid(1), dim3(static_cast<unsigned>(threads)), stream.get(), d, arguments...);
    stream.wait();
  };
  run(&halfway<fit_tile, bool>, kBlock, true);
  run(&halfway<measure_tile>, kBlock);
  run(&halfway<update>, kUpdateBlock);
  run(&halfway<plan_growth, const int*>, kBlock, static_cast<const int*>(ones.data()));
  run(&halfway<plan_move, float, int>, kBlock, 1.0f, 1);
  run(&halfway<draw_errors>, kBlock);
  run(&halfway<place_seeds, float>, kBlock, 1.0f);
  run(&halfway<prune_kernel, float, int, bool>, kBlock, 1.0f, 1, true);
}
#endif

}  // namespace

int main(int count, char** arguments) try {
  Settings s;
  std::string mode;
  for (int i = 3; i < count; ++i) {
    const std::string text = arguments[i];
    const std::size_t at = text.find('=');
    if (text.substr(0, at) == "mode") {
      mode = text.substr(at + 1);
    } else {
      s[text.substr(0, at)] = std::stod(text.substr(at + 1));
    }
  }
  const splat2d::PictureShape shape{static_cast<int>(s["batch"]), static_cast<int>(s["height"]),
                                    static_cast<int>(s["width"])};
  const int n = static_cast<int>(s["num_gaussians"]);
  const std::vector<char> in = bytes_of(arguments[1]);
  std::ofstream file(arguments[2], std::ios::binary);
  if (mode == "fit") {
    run_fit(in, file, shape, n, s);
  } else if (mode == "moments") {
    run_moments(in, file, shape, n);
  }
#ifdef SPLAT2D_EMULATED_CUDA
  if (mode == "halt") run_halt();
  if (!emulated::live.empty()) throw std::runtime_error("device memory was not given back");
  std::cout << emulated::allocations;
#endif
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 2;
}
