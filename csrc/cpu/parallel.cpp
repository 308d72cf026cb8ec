// Splits the rows of weights over PyTorch's threads and hands them to the kernels in use.
//
// The kernels want dense rows. Rows made of runs (the weight of a transposed convolution) are
// gathered a few at a time into a buffer that stays in the cache, and the results scattered from
// one: memory is still read once and written once.
#include "parallel.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>

#include "kernels.h"

namespace ws {
namespace {

// Below this many bytes a thread is not worth waking. Beside its bytes, a row costs its reductions,
// which take as long as that many bytes more.
constexpr int64_t kBytesPerThread = 64 * 1024;
constexpr int64_t kBytesPerRow = 512;
constexpr int64_t kBytesGathered = 256;

struct ElementSizes {
  int64_t weight, out;
};
constexpr ElementSizes kSizes[kTypesCount] = {{8, 8}, {4, 4}, {2, 2}, {2, 2}, {4, 2}, {4, 2}};

char* at(const void* base, int64_t elements, int64_t size) {
  return const_cast<char*>(static_cast<const char*>(base)) + elements * size;
}

// Rows [row, row + rows) of a strided tensor, between memory and a dense buffer [rows, cols].
template <class T, bool kGather>
void move_rows(T* memory, T* buffer, const Shape& shape, const Strides& strides, int64_t row,
               int64_t rows) {
  for (int64_t j = 0; j < shape.cols; j += shape.run) {
    for (int64_t i = 0; i < rows; ++i) {
      T* run = memory + (row + i) * strides.row + j / shape.run * strides.run;
      T* dense = buffer + i * shape.cols + j;
      for (int64_t k = 0; k < shape.run; ++k)
        (kGather ? dense[k] : run[k]) = (kGather ? run : dense)[k];
    }
  }
}

template <bool kGather>
void move_rows(int64_t size, const void* memory, char* buffer, const Shape& shape,
               const Strides& strides, int64_t row, int64_t rows) {
  auto move = [&](auto* typed) {
    using T = std::remove_reference_t<decltype(*typed)>;
    move_rows<T, kGather>(static_cast<T*>(const_cast<void*>(memory)), typed, shape, strides, row,
                          rows);
  };
  if (size == 8) move(reinterpret_cast<uint64_t*>(buffer));
  if (size == 4) move(reinterpret_cast<uint32_t*>(buffer));
  if (size == 2) move(reinterpret_cast<uint16_t*>(buffer));
}

// A dense piece of `rows` rows, for buffers.
void make_dense(Shape& shape, int64_t rows) { shape = {rows, shape.cols, shape.cols}; }

// How many rows to gather: so many that their runs, side by side in memory, fill some cache lines.
int64_t rows_at_a_time(const Shape& shape, const ElementSizes& sizes) {
  return std::max<int64_t>(1, kBytesGathered / (shape.run * sizes.weight));
}

void gathered_forward(ForwardRows kernel, const ElementSizes& sizes, const Forward& args,
                      int64_t begin, int64_t end) {
  const int64_t cols = args.shape.cols, step = rows_at_a_time(args.shape, sizes);
  std::unique_ptr<char[]> weight(new char[step * cols * sizes.weight]);
  std::unique_ptr<char[]> out(new char[step * cols * sizes.out]);
  Forward piece = args;
  piece.weight = weight.get();
  piece.out = out.get();
  piece.weight_strides = piece.out_strides = {cols, cols};
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    make_dense(piece.shape, rows);
    if (args.gain) piece.gain = at(args.gain, row, sizes.weight);
    if (args.shift) piece.shift = at(args.shift, row, sizes.weight);
    move_rows<true>(sizes.weight, args.weight, weight.get(), args.shape, args.weight_strides, row,
                    rows);
    kernel(piece, 0, rows);
    move_rows<false>(sizes.out, args.out, out.get(), args.shape, args.out_strides, row, rows);
  }
}

void gathered_backward(BackwardRows kernel, const ElementSizes& sizes, const Backward& args,
                       int64_t begin, int64_t end) {
  const int64_t cols = args.shape.cols, step = rows_at_a_time(args.shape, sizes);
  std::unique_ptr<char[]> grad(new char[step * cols * sizes.out]);
  std::unique_ptr<char[]> weight(new char[step * cols * sizes.weight]);
  Backward piece = args;
  piece.grad = grad.get();
  piece.weight = piece.grad_weight = weight.get();  // the result may overwrite its row's weight
  piece.grad_strides = piece.weight_strides = piece.grad_weight_strides = {cols, cols};
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    make_dense(piece.shape, rows);
    if (args.gain) piece.gain = at(args.gain, row, sizes.weight);
    if (args.grad_gain) piece.grad_gain = at(args.grad_gain, row, sizes.weight);
    if (args.grad_shift) piece.grad_shift = at(args.grad_shift, row, sizes.weight);
    move_rows<true>(sizes.out, args.grad, grad.get(), args.shape, args.grad_strides, row, rows);
    move_rows<true>(sizes.weight, args.weight, weight.get(), args.shape, args.weight_strides, row,
                    rows);
    kernel(piece, 0, rows);
    move_rows<false>(sizes.weight, args.grad_weight, weight.get(), args.shape,
                     args.grad_weight_strides, row, rows);
  }
}

// Calls run(work, begin, end) for ranges of rows of each weight, on as many threads as the bytes are
// worth. The weights lie end to end on a line as long as their costs; a thread gets a piece of it,
// and the rows that start there.
template <class Args, class Run>
void split_rows(const Work<Args>* work, int64_t count, int64_t (*bytes_per_element)(Types),
                Run run) {
  const auto cost_of_row = [&](const Work<Args>& w) {
    return kBytesPerRow + w.args->shape.cols * bytes_per_element(w.types);
  };
  int64_t length = 0;
  for (int64_t i = 0; i < count; ++i) length += work[i].args->shape.rows * cost_of_row(work[i]);
  torch::stable::parallel_for(0, length, kBytesPerThread, [&](int64_t begin, int64_t end) {
    int64_t start = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t rows = work[i].args->shape.rows, cost = cost_of_row(work[i]);
      const auto first_row_from = [&](int64_t place) {
        return std::clamp<int64_t>((place - start + cost - 1) / cost, 0, rows);
      };
      const int64_t first = first_row_from(begin), last = first_row_from(end);
      if (first < last) run(work[i], first, last);
      start += rows * cost;
    }
  });
}

bool is_dense(const Shape& shape) { return shape.run == shape.cols; }

}  // namespace

void run_forward(const Work<Forward>* work, int64_t count) {
  const CpuKernels& kernels = cpu_kernels();
  const auto bytes = [](Types types) { return kSizes[types].weight + kSizes[types].out; };
  split_rows(work, count, bytes, [&](const Work<Forward>& w, int64_t begin, int64_t end) {
    const ForwardRows kernel = kernels.forward[w.types];
    if (is_dense(w.args->shape)) {
      kernel(*w.args, begin, end);
    } else {
      gathered_forward(kernel, kSizes[w.types], *w.args, begin, end);
    }
  });
}

void run_backward(const Work<Backward>* work, int64_t count) {
  const CpuKernels& kernels = cpu_kernels();
  const auto bytes = [](Types types) { return 2 * kSizes[types].weight + kSizes[types].out; };
  split_rows(work, count, bytes, [&](const Work<Backward>& w, int64_t begin, int64_t end) {
    const BackwardRows kernel = kernels.backward[w.types];
    if (is_dense(w.args->shape)) {
      kernel(*w.args, begin, end);
    } else {
      gathered_backward(kernel, kSizes[w.types], *w.args, begin, end);
    }
  });
}

}  // namespace ws
