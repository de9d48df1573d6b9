// Holds the calling thread, and the threads that it starts from now on, to a lower x86-64 level:
// the kernel faults on CPUID (arch_prctl ARCH_SET_CPUID) and the handler answers without the
// features that the level lacks. Code that picks its kernels by CPUID then picks older ones.
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

// Leaf 7.0 EBX: F, DQ, CD, BW, VL are x86-64-v4; IFMA, PF, ER are beyond it.
static const unsigned V4_EBX = BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31);
static const unsigned BEYOND_EBX = BIT(21) | BIT(26) | BIT(27);
// ECX: VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, BITALG, VPOPCNTDQ; AVX512-VNNI apart.
static const unsigned BEYOND_ECX = BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(12) | BIT(14);
static const unsigned VNNI_ECX = BIT(11);
// EDX: 4VNNIW, 4FMAPS, VP2INTERSECT, AMX-BF16, FP16, AMX-TILE, AMX-INT8.
static const unsigned BEYOND_EDX =
    BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
// Leaf 7.1 EAX: AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA. All of EDX (INT8, AVX10, …) goes.
static const unsigned BEYOND_71_EAX = BIT(4) | BIT(5) | BIT(21) | BIT(23);

static int level;  // 3: x86-64-v3, 4: x86-64-v4, 5: x86-64-v4 with AVX512-VNNI

static void execute(unsigned leaf, unsigned sub, unsigned *r) {
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}

static void hide(unsigned leaf, unsigned sub, unsigned *r) {
  if (leaf == 7 && sub == 0) {
    r[1] &= ~(BEYOND_EBX | (level < 4 ? V4_EBX : 0));
    r[2] &= ~(BEYOND_ECX | (level < 5 ? VNNI_ECX : 0));
    r[3] &= ~BEYOND_EDX;
  } else if (leaf == 7 && sub == 1) {
    r[0] &= ~BEYOND_71_EAX;
    r[3] = 0;
  } else if (leaf == 0x1D || leaf == 0x1E || leaf == 0x24) {  // AMX tiles, AVX10
    memset(r, 0, 4 * sizeof *r);
  }
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
  greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)regs[REG_RIP];
  (void)info;
  if (code[0] != 0x0F || code[1] != 0xA2) {  // a real fault: die of it when it is run again
    signal(signal_number, SIG_DFL);
    return;
  }
  unsigned leaf = (unsigned)regs[REG_RAX], sub = (unsigned)regs[REG_RCX], r[4];
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  execute(leaf, sub, r);
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  hide(leaf, sub, r);
  regs[REG_RAX] = r[0], regs[REG_RBX] = r[1], regs[REG_RCX] = r[2], regs[REG_RDX] = r[3];
  regs[REG_RIP] += 2;
}

// 0, or the errno of a kernel or a CPU that cannot do it.
int hold(int wanted) {
  struct sigaction action = {0};
  level = wanted;
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  if (sigaction(SIGSEGV, &action, 0) != 0) return errno;
  return syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0 ? 0 : errno;
}

// What CPUID says to this thread: EAX, EBX, ECX, EDX.
void ask(unsigned leaf, unsigned sub, unsigned *r) { execute(leaf, sub, r); }
