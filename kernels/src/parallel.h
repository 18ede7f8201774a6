// Pictures shared out to threads: one at a time, each picture wholly in one thread.
#pragma once

#include <functional>

#include "splat2d/fit.h"

namespace splat2d {

// What a worker asks between steps: whether to stop early.
using Stopped = std::function<bool()>;

// Threads for `count` pieces of work: `threads`, or all processors this process may use where it is 0.
int thread_count(int threads, int count);

// Calls body(worker, index) for every index in [0, count); body of one worker runs in one thread. Denormals are
// flushed to zero in every worker. `poll` runs in the calling thread. False where poll ended the work. An exception
// in a worker ends the work and is thrown again here.
bool parallel(int count, int threads, const std::function<void(int, int, const Stopped&)>& body, const Poll& poll);

}  // namespace splat2d
