// The hot loops for one instruction set; CMakeLists.txt gives this file its compiler flags.
#define SPLAT2D_TARGET avx512
#define SPLAT2D_LANES 16
#include "engine_impl.h"

SPLAT2D_DEFINE_ENGINE(engine_avx512, "avx512")
