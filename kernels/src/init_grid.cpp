#include <algorithm>
#include <cmath>

#include "init.h"

namespace splat2d {

void set_shape(Canvas& canvas, int i, double sxx, double sxy, double syy) {
  Workspace& w = canvas.w;
  const double l00 = std::sqrt(sxx), l10 = sxy / l00, l11 = std::sqrt(std::max(syy - l10 * l10, 1e-8));
  const Cholesky l{static_cast<float>(l00), static_cast<float>(l10), static_cast<float>(l11)};
  const Factor f = factor_of(l);
  w.param[2][i] = w.cholesky ? l.l00 : f.a;
  w.param[3][i] = w.cholesky ? l.l10 : f.b;
  w.param[4][i] = w.cholesky ? l.l11 : f.c;
}

void init_grid(Canvas& canvas, const std::uint8_t* image) {
  Workspace& w = canvas.w;
  const int n = w.count, height = w.height, width = w.width;
  // Rows of cells; a row holds n / rows cells, rounded so that all rows together hold n, and every cell is at least
  // one pixel wide and high.
  const int fewest = (n + width - 1) / width;
  const int wanted = static_cast<int>(std::lround(std::sqrt(static_cast<double>(n) * height / width)));
  const int rows = std::clamp(wanted, fewest, std::min(height, n));
  const double cell_height = static_cast<double>(height) / rows;
  int i = 0;
  for (int row = 0; row < rows; ++row) {
    const int columns = static_cast<int>(static_cast<std::int64_t>(row + 1) * n / rows -
                                         static_cast<std::int64_t>(row) * n / rows);
    const double cell_width = static_cast<double>(width) / columns;
    // Pixel y belongs to the cell that holds its centre y + 0.5, counted from the picture's edge.
    const int y0 = static_cast<int>(std::ceil(row * cell_height - 0.5));
    const int y1 = std::min(height, static_cast<int>(std::ceil((row + 1) * cell_height - 0.5)));
    for (int column = 0; column < columns; ++column, ++i) {
      const int x0 = static_cast<int>(std::ceil(column * cell_width - 0.5));
      const int x1 = std::min(width, static_cast<int>(std::ceil((column + 1) * cell_width - 0.5)));
      double sum[3] = {0.0, 0.0, 0.0};
      for (int y = y0; y < y1; ++y) {
        for (int x = x0; x < x1; ++x) {
          for (int k = 0; k < 3; ++k) sum[k] += image[(static_cast<std::size_t>(y) * width + x) * 3 + k];
        }
      }
      const double scale = 1.0 / (255.0 * std::max(1, (y1 - y0) * (x1 - x0)));
      for (int k = 0; k < 3; ++k) w.param[5 + k][i] = static_cast<float>(sum[k] * scale);
      w.param[0][i] = static_cast<float>((column + 0.5) * cell_width - 0.5);
      w.param[1][i] = static_cast<float>((row + 0.5) * cell_height - 0.5);
      const double sigma = 0.5 * std::min(cell_width, cell_height);
      set_shape(canvas, i, sigma * sigma, 0.0, sigma * sigma);
    }
  }
  canvas.pad_parameters();
}

}  // namespace splat2d
