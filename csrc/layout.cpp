// A channel's elements are found by collapsing its dimensions, innermost first: those that follow
// each other without a gap form the run, and the rest must lie at one common distance.
#include "layout.h"

namespace ws {
namespace {

// Writes the dimensions of more than one element, smallest stride first, and returns their number.
int order_of(const View& view, int64_t left_out, int* order) {
  int count = 0;
  for (int64_t d = view.dim - 1; d >= 0; --d) {
    if (view.sizes[d] == 1 || d == left_out) continue;
    int place = count++;
    for (; place > 0 && view.strides[order[place - 1]] > view.strides[d]; --place) {
      order[place] = order[place - 1];
    }
    order[place] = static_cast<int>(d);
  }
  return count;
}

int64_t contiguous_run(const View& view, const int* order, int count) {
  int64_t run = 1;
  for (int i = 0; i < count && view.strides[order[i]] == run; ++i) run *= view.sizes[order[i]];
  return run;
}

// The distance from run to run where a row is runs of `run` elements; false if it is not one
// distance.
bool find_run_stride(const View& view, const int* order, int count, int64_t run, int64_t* stride) {
  if (contiguous_run(view, order, count) < run) return false;
  int64_t elements = 1, runs = 1;
  *stride = run;
  for (int i = 0; i < count; ++i) {
    const int64_t d = order[i];
    if (elements < run) {
      elements *= view.sizes[d];
      continue;
    }
    if (runs == 1) *stride = view.strides[d];
    if (view.strides[d] != runs * *stride) return false;
    runs *= view.sizes[d];
  }
  return true;
}

}  // namespace

bool is_dense(const View& view) {
  int order[kMaxDims];
  const int count = order_of(view, /*left_out=*/-1, order);
  int64_t expected = 1;
  for (int i = 0; i < count; ++i) {
    if (view.strides[order[i]] != expected) return false;
    expected *= view.sizes[order[i]];
  }
  return true;
}

int match_layout(const View* views, int count, int64_t channel_dim, Shape* shape,
                 Strides* strides) {
  int order[kMaxDims];
  const int dims = order_of(views[0], channel_dim, order);
  shape->rows = views[0].sizes[channel_dim];
  shape->cols = 1;
  for (int i = 0; i < dims; ++i) shape->cols *= views[0].sizes[order[i]];
  shape->run = contiguous_run(views[0], order, dims);
  for (int t = 0; t < count; ++t) {
    strides[t].row = views[t].strides[channel_dim];
    if (!find_run_stride(views[t], order, dims, shape->run, &strides[t].run)) return t;
  }
  return count;
}

}  // namespace ws
