// Time of render and gradient alone, without Python, initialisation or optimiser steps.
//
//   splat2d_roofline FILE THREADS RUNS    prints {"backend", "whole_s", "passes_s"}
//
// FILE: int32 B, H, W, N; then uint8 pictures [B, H, W, 3] and float32 means [B, N, 2], cholesky [B, N, 3],
// colors [B, N, 3]. Both times are seconds of processor time for one iteration of every picture, added up: each
// picture's best of RUNS, measured while all threads work. whole: packing, lists and both passes; passes: these alone.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "parallel.h"
#include "workspace.h"

namespace {

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <typename T>
std::vector<T> read(std::ifstream& file, std::size_t size) {
  std::vector<T> values(size);
  if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(size * sizeof(T)))) {
    throw std::runtime_error("roofline: the file is too short");
  }
  return values;
}

template <typename Body>
double best_of(int runs, Body&& body) {
  double best = 1e30;
  for (int run = 0; run < runs; ++run) {
    const double start = thread_seconds();
    body();
    best = std::min(best, thread_seconds() - start);
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: splat2d_roofline FILE THREADS RUNS\n");
    return 2;
  }
  std::ifstream file(argv[1], std::ios::binary);
  const int threads = std::atoi(argv[2]), runs = std::atoi(argv[3]);
  const auto head = read<std::int32_t>(file, 4);
  const int batch = head[0], height = head[1], width = head[2], number = head[3];
  const std::size_t b = static_cast<std::size_t>(batch), n = static_cast<std::size_t>(number);
  const std::size_t size = static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3;
  const auto images = read<std::uint8_t>(file, b * size);
  const auto means = read<float>(file, b * n * 2), cholesky = read<float>(file, b * n * 3);
  const auto colors = read<float>(file, b * n * 3);

  const splat2d::Engine& engine = splat2d::engine();
  std::vector<double> whole(b), passes(b);
  const auto body = [&](int, int index, const splat2d::Stopped&) {
    const std::size_t at = static_cast<std::size_t>(index);
    splat2d::Canvas canvas(engine, height, width, number);
    canvas.load_target(images.data() + at * size);
    canvas.load_splats(means.data() + at * n * 2, cholesky.data() + at * n * 3, colors.data() + at * n * 3);
    const splat2d::Pass pass{splat2d::From::target, true, true};
    whole[at] = best_of(runs, [&] { canvas.run(pass); });
    passes[at] = best_of(runs, [&] { engine.run(canvas.w, pass); });
  };
  splat2d::parallel(batch, threads, body, {});
  double whole_sum = 0.0, passes_sum = 0.0;
  for (std::size_t i = 0; i < b; ++i) whole_sum += whole[i], passes_sum += passes[i];
  std::printf("{\"backend\": \"%s\", \"whole_s\": %.9f, \"passes_s\": %.9f}\n", engine.name, whole_sum, passes_sum);
}
