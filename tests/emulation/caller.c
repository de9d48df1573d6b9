// Calls one kernel on tensors from a file, in place of the TVM runtime: linked statically with the
// kernel's object file for another machine, it runs under qemu-user.
//
//   caller TENSORS OUTPUT TASKS
//   caller TENSORS OUTPUT TASKS NET.so SYMBOL     compiled with -DLIBRARY: a kernel of a library
//
// TENSORS: int32 count, then for each tensor int32 code, bits, ndim, int64 shape[ndim], int64 bytes
// and the data. The last one is the output; OUTPUT receives it with the guard bytes on both sides.
// A parallel loop runs as TASKS tasks, one after the other.
#ifdef LIBRARY
#include <dlfcn.h>
#endif
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

enum { kGuard = 256, kLine = 64, kMost = 32 };

typedef struct {
  void* sync_handle;
  int32_t num_task;
} Group;

static int tasks = 1;

static int Launch(int (*lambda)(int, Group*, void*), void* data, int wanted) {
  Group group = {NULL, wanted > 0 ? wanted : tasks};
  for (int task = 0; task < group.num_task; ++task) {
    if (lambda(task, &group, data) != 0) return -1;
  }
  return 0;
}

static void* Allocate(size_t bytes) {
  return aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine);
}

static void* Workspace(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  return Allocate(bytes);
}

static int Release(int type, int id, void* memory) {
  (void)type, (void)id;
  free(memory);
  return 0;
}

// LLVM modules reach the runtime through these pointers, C sources through the functions below.
extern void* __TVMBackendParallelLaunch __attribute__((weak));
extern void* __TVMBackendAllocWorkspace __attribute__((weak));
extern void* __TVMBackendFreeWorkspace __attribute__((weak));

int TVMBackendParallelLaunch(int (*lambda)(int, Group*, void*), void* data, int wanted) {
  return Launch(lambda, data, wanted);
}
void* TVMBackendAllocWorkspace(int t, int i, uint64_t bytes, int c, int b) {
  return Workspace(t, i, bytes, c, b);
}
int TVMBackendFreeWorkspace(int t, int i, void* memory) { return Release(t, i, memory); }

void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  fprintf(stderr, "%s: %s\n", kind, message);
}

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; ++i) fputs(parts[i] ? parts[i] : "", stderr);
  fputc('\n', stderr);
}

typedef int Kernel(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result);

#ifdef LIBRARY
enum { kArguments = 6 };

static void Set(void* library, const char* name, void* function) {
  void** pointer = dlsym(library, name);
  if (pointer) *pointer = function;
}

static Kernel* Find(char** argv) {
  void* library = dlopen(argv[4], RTLD_NOW);
  Kernel* kernel = library ? (Kernel*)dlsym(library, argv[5]) : NULL;
  if (!kernel) {
    fprintf(stderr, "%s\n", dlerror());
    exit(4);
  }
  Set(library, "__TVMBackendParallelLaunch", (void*)Launch);
  Set(library, "__TVMBackendAllocWorkspace", (void*)Workspace);
  Set(library, "__TVMBackendFreeWorkspace", (void*)Release);
  return kernel;
}
#else
enum { kArguments = 4 };

Kernel __tvm_ffi_main;

static Kernel* Find(char** argv) {
  (void)argv;
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = (void*)Launch;
  if (&__TVMBackendAllocWorkspace) __TVMBackendAllocWorkspace = (void*)Workspace;
  if (&__TVMBackendFreeWorkspace) __TVMBackendFreeWorkspace = (void*)Release;
  return __tvm_ffi_main;
}
#endif

static void Get(void* to, size_t bytes, FILE* file) {
  if (bytes && fread(to, 1, bytes, file) != bytes) {
    fputs("the file of tensors ends too early\n", stderr);
    exit(3);
  }
}

static size_t Read(DLTensor* tensor, FILE* file) {
  int32_t head[3];
  int64_t bytes;
  Get(head, sizeof(head), file);
  memset(tensor, 0, sizeof(*tensor));
  tensor->dtype = (DLDataType){(uint8_t)head[0], (uint8_t)head[1], 1};
  tensor->ndim = head[2];
  tensor->device = (DLDevice){kDLCPU, 0};
  tensor->shape = malloc(sizeof(int64_t) * (size_t)(head[2] + 1));
  Get(tensor->shape, sizeof(int64_t) * (size_t)head[2], file);
  Get(&bytes, sizeof(bytes), file);
  char* memory = Allocate((size_t)bytes + 2 * kGuard);
  memset(memory, 0xA5, (size_t)bytes + 2 * kGuard);
  tensor->data = memory + kGuard;
  Get(tensor->data, (size_t)bytes, file);
  return (size_t)bytes;
}

int main(int argc, char** argv) {
  DLTensor tensors[kMost];
  TVMFFIAny args[kMost], result;
  int32_t count;
  size_t bytes = 0;
  FILE* file = argc == kArguments ? fopen(argv[1], "rb") : NULL;
  if (!file) return 2;
  tasks = atoi(argv[3]);
  Kernel* kernel = Find(argv);
  Get(&count, sizeof(count), file);
  if (count > kMost) return 2;
  memset(args, 0, sizeof(args));
  memset(&result, 0, sizeof(result));
  for (int i = 0; i < count; ++i) {
    bytes = Read(&tensors[i], file);
    args[i].type_index = kTVMFFIDLTensorPtr;
    args[i].v_ptr = &tensors[i];
  }
  fclose(file);
  if (kernel(NULL, args, count, &result) != 0) return 1;
  FILE* output = fopen(argv[2], "wb");
  if (!output) return 2;
  const char* start = (const char*)tensors[count - 1].data - kGuard;
  size_t wrote = fwrite(start, 1, bytes + 2 * kGuard, output);
  return fclose(output) != 0 || wrote != bytes + 2 * kGuard ? 2 : 0;
}
