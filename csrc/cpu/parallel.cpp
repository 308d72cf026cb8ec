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

// Rows [row, row + rows) of a tensor, between memory and a dense buffer [rows, cols].
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
void move_rows(int bytes, const Operand& tensor, void* buffer, const Shape& shape, int64_t row,
               int64_t rows) {
  if (tensor.data == nullptr) return;
  const auto move = [&](auto element) {
    using T = decltype(element);
    move_rows<T, kGather>(static_cast<T*>(tensor.data), static_cast<T*>(buffer), shape,
                          tensor.strides, row, rows);
  };
  if (bytes == 8) move(uint64_t());
  if (bytes == 4) move(uint32_t());
  if (bytes == 2) move(uint16_t());
}

// As many rows at a time as fill some cache lines with their runs, side by side in memory.
template <class Args>
void run_gathered(RowsKernel<Args> kernel, const Work<Args>& work, int64_t begin, int64_t end) {
  const Args& args = *work.args;
  const int64_t cols = args.shape.cols, weight_bytes = kElementBytes[work.types][0];
  const int64_t step = std::max<int64_t>(1, kBytesGathered / (args.shape.run * weight_bytes));
  std::unique_ptr<char[]> buffers[Args::kOperands];
  Args piece = args;
  for (int i = Args::kOperands - 1; i >= 0; --i) {
    if (args.operands[i].data == nullptr) continue;
    const int bytes = bytes_of<Args>(work.types, i), input = i + Args::kFirstInput;
    // what is only written may overwrite the input of its number, if that is only read
    const bool shared = i < Args::kFirstInput && Args::kResults <= input &&
                        input < Args::kOperands && bytes == bytes_of<Args>(work.types, input);
    if (!shared) buffers[i].reset(new char[step * cols * bytes]);
    piece.operands[i] = {shared ? piece.operands[input].data : buffers[i].get(), {cols, cols}};
  }
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = std::min(step, end - row);
    piece.shape = {rows, cols, cols};
    for (int i = 0; i < Args::kVectors; ++i) {
      if (args.vectors[i]) {
        piece.vectors[i] = static_cast<char*>(args.vectors[i]) + row * weight_bytes;
      }
    }
    for (int i = Args::kFirstInput; i < Args::kOperands; ++i) {
      move_rows<true>(bytes_of<Args>(work.types, i), args.operands[i], piece.operands[i].data,
                      args.shape, row, rows);
    }
    kernel(piece, 0, rows);
    for (int i = 0; i < Args::kResults; ++i) {
      move_rows<false>(bytes_of<Args>(work.types, i), args.operands[i], piece.operands[i].data,
                       args.shape, row, rows);
    }
  }
}

// Calls run(work, begin, end) for ranges of rows of each weight, on as many threads as the bytes are
// worth. The weights lie end to end on a line as long as their costs; a thread gets a piece of it,
// and the rows that start there.
template <class Args, class Run>
void split_rows(const Work<Args>* work, int64_t count, Run run) {
  const auto cost_of_row = [](const Work<Args>& w) {
    int64_t bytes = 0;
    for (int i = 0; i < Args::kOperands; ++i) {
      if (w.args->operands[i].data != nullptr) bytes += bytes_of<Args>(w.types, i);
    }
    return kBytesPerRow + w.args->shape.cols * bytes;
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

RowsKernel<Forward> kernel_of(const CpuKernels& kernels, const Work<Forward>& work) {
  return kernels.forward[work.types];
}
RowsKernel<Backward> kernel_of(const CpuKernels& kernels, const Work<Backward>& work) {
  return kernels.backward[work.types];
}
RowsKernel<Norms> kernel_of(const CpuKernels& kernels, const Work<Norms>& work) {
  return kernels.norms[work.types];
}
RowsKernel<Update> kernel_of(const CpuKernels& kernels, const Work<Update>& work) {
  return kernels.update[work.types];
}

}  // namespace

template <class Args>
void run_on_cpu(const Work<Args>* work, int64_t count, int32_t) {
  const CpuKernels& kernels = cpu_kernels();
  split_rows(work, count, [&](const Work<Args>& w, int64_t begin, int64_t end) {
    const RowsKernel<Args> kernel = kernel_of(kernels, w);
    if (w.args->shape.run == w.args->shape.cols) {
      kernel(*w.args, begin, end);
    } else {
      run_gathered(kernel, w, begin, end);
    }
  });
}

template WS_API void run_on_cpu(const Work<Forward>*, int64_t, int32_t);
template WS_API void run_on_cpu(const Work<Backward>*, int64_t, int32_t);
template WS_API void run_on_cpu(const Work<Norms>*, int64_t, int32_t);
template WS_API void run_on_cpu(const Work<Update>*, int64_t, int32_t);

}  // namespace ws
