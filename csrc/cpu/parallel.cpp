// Splits the rows of a weight over PyTorch's threads and hands them to the kernels in use.
//
// The kernels want dense rows. Rows made of runs (the weight of a transposed convolution) are
// gathered a few at a time into a buffer that stays in the cache, and the results scattered from
// one: memory is still read once and written once. How many at a time: their runs lie side by side
// in memory, and together they should fill a few cache lines.
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

void gathered_forward(ForwardRows kernel, const ElementSizes& sizes, const Forward& args,
                      int64_t begin, int64_t end, int64_t step) {
  const int64_t cols = args.shape.cols;
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
                       int64_t begin, int64_t end, int64_t step) {
  const int64_t cols = args.shape.cols;
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

int64_t rows_of(int64_t bytes, int64_t bytes_per_row) {
  return std::max<int64_t>(1, bytes / std::max<int64_t>(1, bytes_per_row));
}

// Calls dense(begin, end) or gathered(begin, end, step) for ranges of rows, on as many threads as
// the bytes are worth.
template <class Dense, class Gathered>
void split_rows(const Shape& shape, const ElementSizes& sizes, int64_t bytes_per_element,
                Dense dense, Gathered gathered) {
  const int64_t grain = rows_of(kBytesPerThread, kBytesPerRow + shape.cols * bytes_per_element);
  const int64_t step = rows_of(kBytesGathered, shape.run * sizes.weight);
  torch::stable::parallel_for(0, shape.rows, grain, [&](int64_t begin, int64_t end) {
    if (shape.run == shape.cols) {
      dense(begin, end);
    } else {
      gathered(begin, end, step);
    }
  });
}

}  // namespace

void run_forward(Types types, const Forward& args) {
  const ForwardRows kernel = cpu_kernels().forward[types];
  const ElementSizes& sizes = kSizes[types];
  split_rows(
      args.shape, sizes, sizes.weight + sizes.out,
      [&](int64_t begin, int64_t end) { kernel(args, begin, end); },
      [&](int64_t begin, int64_t end, int64_t step) {
        gathered_forward(kernel, sizes, args, begin, end, step);
      });
}

void run_backward(Types types, const Backward& args) {
  const BackwardRows kernel = cpu_kernels().backward[types];
  const ElementSizes& sizes = kSizes[types];
  split_rows(
      args.shape, sizes, 2 * sizes.weight + sizes.out,
      [&](int64_t begin, int64_t end) { kernel(args, begin, end); },
      [&](int64_t begin, int64_t end, int64_t step) {
        gathered_backward(kernel, sizes, args, begin, end, step);
      });
}

}  // namespace ws
