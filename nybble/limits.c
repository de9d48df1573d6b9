// Register-only loops and plain reads: what this machine could do at most.
// Each loop returns the multiply-adds (or bytes) of one iteration, so that the caller can count.
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CLOBBER \
  "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12"
#define FOUR(body, r) body(r, 1, 9) body(r, 2, 10) body(r, 3, 11) body(r, 4, 12)
#define LOOP(name, macs, body)                                      \
  long name(long n) {                                               \
    for (long i = 0; i < n; i++) __asm__ volatile(body ::: CLOBBER); \
    return macs;                                                    \
  }

// u8 x s8 into s32 by way of s16: any pair that fits s16 once.
#define WIDEN(r, t, s)                                          \
  "vpmaddubsw %%" r "0, %%" r "0, %%" r #t "\n"                 \
  "vpmaddwd %%" r #t ", %%" r "0, %%" r #t "\n"                 \
  "vpaddd %%" r #t ", %%" r #s ", %%" r #s "\n"
// u8 x narrow weights, summed in s16.
#define PILE(r, t, s)                           \
  "vpmaddubsw %%" r "0, %%" r "0, %%" r #t "\n" \
  "vpaddw %%" r #t ", %%" r #s ", %%" r #s "\n"
// s8 x u8 or f32 into 32 bits at once: two chains each.
#define TWICE(op, r, t, s)                   \
  op " %%" r "0, %%" r "0, %%" r #t "\n"     \
  op " %%" r "0, %%" r "0, %%" r #s "\n"
#define DOT(r, t, s) TWICE("vpdpbusd", r, t, s)
#define FMA(r, t, s) TWICE("vfmadd231ps", r, t, s)

LOOP(maddubs_maddwd_ymm, 4 * 32, FOUR(WIDEN, "ymm"))
LOOP(maddubs_maddwd_zmm, 4 * 64, FOUR(WIDEN, "zmm"))
LOOP(maddubs_paddw_ymm, 4 * 32, FOUR(PILE, "ymm"))
LOOP(maddubs_paddw_zmm, 4 * 64, FOUR(PILE, "zmm"))
LOOP(vpdpbusd_zmm, 8 * 64, FOUR(DOT, "zmm"))
LOOP(fma_ymm, 8 * 8, FOUR(FMA, "ymm"))
LOOP(fma_zmm, 8 * 16, FOUR(FMA, "zmm"))

// Four tiles of sums, two of each operand, as a kernel would hold them.
long tdpbusd(long n) {
  struct {
    unsigned char palette, start_row, reserved[14];
    unsigned short bytes[16];
    unsigned char rows[16];
  } config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int t = 0; t < 8; t++) config.bytes[t] = 64, config.rows[t] = 16;
  const long request_permission = 0x1023, tile_data = 18;
  if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) return 0;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  for (long i = 0; i < n; i++)
    __asm__ volatile(
        "tdpbusd %tmm6, %tmm4, %tmm0\ntdpbusd %tmm7, %tmm4, %tmm1\n"
        "tdpbusd %tmm6, %tmm5, %tmm2\ntdpbusd %tmm7, %tmm5, %tmm3\n");
  __asm__ volatile("tilerelease");
  return 4 * 16 * 16 * 64;
}

// Reads a buffer of a multiple of 512 bytes, n times.
long read_bytes(const char *data, size_t size, long n) {
  for (long i = 0; i < n; i++)
    for (const char *p = data; p < data + size; p += 512)
      __asm__ volatile(
          ".set offset, 0\n.rept 16\nvmovdqu offset(%0), %%ymm1\n.set offset, offset + 32\n.endr" ::"r"(p)
          : "xmm1");
  return (long)size;
}
