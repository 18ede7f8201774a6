// The hot loops as a table of plain functions: one table for each instruction set, chosen at run time.
//
// Includes nothing that instantiates templates: this header and what it includes are compiled with every
// instruction set, and the linker keeps only one copy of such code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace splat2d {

constexpr int kMaxLanes = 16;

// Starts of recurrences are computed kStartBlock at a time; the first of a strip, at most kSavedStarts, are kept for
// its backward pass. One takes at most kStartBytes.
constexpr int kStartBlock = 32;
constexpr int kSavedStarts = 1024;
constexpr int kStartBytes = 192;

// E is held times 2^kScaleBits in the row loops, for more room above underflow.
constexpr int kScaleBits = 90;
constexpr float kScale = 0x1p90f, kUnscale = 0x1p-90f;

// Engine::multiply takes vectors and columns in multiples of these.
constexpr int kMetricVectors = 8;
constexpr int kMetricColumns = 32;

// What the row loops read of one Gaussian: one cache line.
struct alignas(64) Packed {
  float x, y, a, b, c;
  float red, green, blue;  // times 2^-kScaleBits
  float half_h;          // (b^2 + c^2) / 2
  float decay;           // exp(-(b^2 + c^2)): how the ratio of successive rows shrinks
  std::int32_t restart;  // rows until the recurrence starts anew
  float unused[5];
};

// What the lists are made from. The ellipse's rows at dx, seen from the mean: -slope dx -+ sqrt(reach - bend dx^2).
struct Bounds {
  float x, y, slope, reach, bend;
  float top;                             // dx of the ellipse's lowest row bound, -3 b / (a c)
  std::int32_t first_strip, last_strip;  // first > last: not in the picture
};

// Rows of one Gaussian in one strip of one band.
struct Entry {
  std::int32_t index, first_row, rows;
};

// Bands are at most so high: what one strip of a band needs fits into 1 MB of cache, and so do its neighbours' records.
constexpr int kBandRows = 512;

// One picture in the hands of one thread. The picture is cut into columns of `lanes` pixels ("strips"), and strips into
// `bands` of band_rows rows, the last one perhaps lower. Planes are [strip][row][channel][lane]. Arrays over Gaussians
// are padded to a multiple of 16.
struct Workspace {
  int height, width, lanes, strips, bands, band_rows;
  int count;      // Gaussians in use
  int padded;     // count rounded up to 16
  bool cholesky;  // param[2..4] holds (l00, l10, l11); otherwise (a, b, c)
  float* param[8];
  float* adam_m[8];
  float* adam_v[8];
  float* color_override[3];  // colours that `pack` uses instead of param[5..7] where not null
  Packed* packed;
  Bounds* bounds;
  float* moments;             // [padded][8]
  std::uint8_t* target;       // plane
  float* gradient;            // plane, null until loaded
  void* starts;               // saved_starts + kStartBlock of kStartBytes
  int saved_starts;
  float* strip;               // of one band: [row][channel][lane]
  std::int32_t* order;        // Gaussians by row, so that neighbours share cache lines
  std::int32_t* strip_start;  // [bands][strips + 1] offsets into entries; a band ends where the next begins
  Entry* entries;
  std::size_t entry_capacity;
  void* owner;
  void (*grow_entries)(Workspace&, std::size_t);
};

// What a strip starts from: zeros, minus the target / 255, or the gradient.
enum class From { zeros, target, gradient };

// Passes over one picture.
struct Pass {
  From from;
  bool forward;   // add the Gaussians
  bool backward;  // moments of what the strip then holds
  float* out = nullptr;       // plane: where the strips go, if not null
  double* squared = nullptr;  // the sum of squares of what the strips then hold is added here, if not null
  // Sees the rows of each strip and band, in order, before the next ones take their place.
  void (*see)(void* seer, int strip, int first_row, int rows, const float* values) = nullptr;
  void* seer = nullptr;
};

struct StepArguments;  // StepSettings of update.h: same layout in every instruction set

struct Engine {
  const char* name;
  int lanes;
  void (*pack)(Workspace&);               // param -> packed, bounds
  void (*list)(Workspace&);               // bounds -> entries of every strip
  void (*run)(Workspace&, const Pass&);   // needs pack and list
  void (*adam)(Workspace&, const StepArguments*);
  void (*natural)(Workspace&, const StepArguments*);
  // out [count][columns] = vectors [count][rows] times matrix [rows][columns], all aligned to cache lines.
  void (*multiply)(const float* vectors, int count, const float* matrix, int rows, int columns, float* out);
};

const Engine& engine_portable();
#if defined(SPLAT2D_X86)
const Engine& engine_avx2();
const Engine& engine_avx512();
#endif

// The engine in use: SPLAT2D_BACKEND names it, otherwise the best one this processor runs. Throws on a name that is
// unknown or not supported here.
const Engine& engine();

}  // namespace splat2d
