// A 32-bit program that makes sockets as its C library does: by one call whose arguments lie in
// memory. Prints what each attempt came to. Compiled with -m32 -static.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, long result) {
  printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
  fflush(stdout);
}

static long multiplexed(int call, void *arguments) { return syscall(SYS_socketcall, call, arguments); }

static void try_families(void) {
  static const struct { const char *name; int family, type, protocol; } tries[] = {
    {"unix", AF_UNIX, SOCK_STREAM, 0}, {"inet", AF_INET, SOCK_STREAM, 0},
    {"inet6", AF_INET6, SOCK_DGRAM, 0}, {"netlink", AF_NETLINK, SOCK_RAW, NETLINK_ROUTE},
    {"raw", AF_INET, SOCK_RAW, IPPROTO_TCP}, {"packet", AF_PACKET, SOCK_RAW, 0},
    {"old-packet", AF_INET, SOCK_PACKET | SOCK_CLOEXEC, 0}, {"vsock", AF_VSOCK, SOCK_STREAM, 0}, {"alg", AF_ALG, SOCK_SEQPACKET, 0},
    {"unspecified", AF_UNSPEC, SOCK_STREAM, 0}, {"minus", -1, SOCK_STREAM, 0},
    {"wide", 0x10000 | AF_UNIX, SOCK_STREAM, 0}, {"kind", AF_UNIX, -1, 0},
    {"flags", AF_UNIX, SOCK_STREAM | 0x100000, 0}, {"protocol", AF_INET, SOCK_STREAM, -1},
  };
  for (unsigned i = 0; i < sizeof tries / sizeof *tries; i++) {
    int made = socket(tries[i].family, tries[i].type, tries[i].protocol);
    say(tries[i].name, made);
    if (made >= 0) {
      int family = 0;
      socklen_t length = sizeof family;
      getsockopt(made, SOL_SOCKET, SO_DOMAIN, &family, &length);
      if (family != tries[i].family) printf("%s-is %d\n", tries[i].name, family);
      close(made);
    }
  }
}

static void try_flags(void) {
  int plain = socket(AF_UNIX, SOCK_STREAM, 0);
  int flagged = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  printf("plain %d,%d\n", fcntl(plain, F_GETFD), fcntl(plain, F_GETFL) & O_NONBLOCK);
  printf("flagged %d,%d\n", fcntl(flagged, F_GETFD), fcntl(flagged, F_GETFL) & O_NONBLOCK);
  printf("lowest %d\n", plain);
  close(plain);
  close(flagged);
  int pair[2] = {-1, -1};
  say("pair", socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair));
  char got[8] = "";
  say("through", write(pair[0], "hello", 5) == 5 && read(pair[1], got, 8) == 5 ? 0 : -1);
  printf("pair-flags %d,%d\n", fcntl(pair[0], F_GETFD), fcntl(pair[1], F_GETFD));
  close(pair[0]);
  close(pair[1]);
  say("pair-inet", socketpair(AF_INET, SOCK_STREAM, 0, pair));
  say("pair-vsock", socketpair(AF_VSOCK, SOCK_STREAM, 0, pair));
}

static void try_pointers(void) {
  char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  munmap(page + 4096, 4096);
  int unix_stream[] = {AF_UNIX, SOCK_STREAM, 0};
  say("null", multiplexed(1, 0));
  say("kernel", multiplexed(1, (void *)0xffffe000));
  memcpy(page + 4096 - 8, unix_stream, 8);
  say("cut", multiplexed(1, page + 4096 - 8));
  memcpy(page + 4096 - 12, unix_stream, 12);
  say("whole", multiplexed(1, page + 4096 - 12));
  int pair_nowhere[] = {AF_UNIX, SOCK_STREAM, 0, 16};
  say("pair-nowhere", multiplexed(8, pair_nowhere));
  int pair_cut[] = {AF_UNIX, SOCK_STREAM, 0, (int)(page + 4096 - 4)};
  say("pair-cut", multiplexed(8, pair_cut));
  struct rlimit none = {8, 8};
  setrlimit(RLIMIT_NOFILE, &none);
  int last = 0;
  while (last >= 0) last = socket(AF_UNIX, SOCK_STREAM, 0);
  say("full", last);
}

// Work: a connection over loopback, and a question to the kernel about its links.
static void try_work(void) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
  say("bind", bind(listener, (struct sockaddr *)&address, length));
  listen(listener, 1);
  getsockname(listener, (struct sockaddr *)&address, &length);
  say("connect", connect(client, (struct sockaddr *)&address, length));
  int served = accept(listener, 0, 0);
  char got[8] = "";
  say("talk", write(client, "hello", 5) == 5 && read(served, got, 8) == 5 ? 0 : -1);
  int abstract = socket(AF_UNIX, SOCK_STREAM, 0), other = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0here"};
  say("abstract", bind(abstract, (struct sockaddr *)&name, 7) || listen(abstract, 1));
  say("abstract-connect", connect(other, (struct sockaddr *)&name, 7));
  struct ucred peer;
  length = sizeof peer;
  getsockopt(other, SOL_SOCKET, SO_PEERCRED, &peer, &length);
  printf("peer %d,%d,%d\n", peer.pid == getpid(), peer.uid == getuid(), peer.gid == getgid());
  struct { struct nlmsghdr head; struct ifinfomsg link; } down = {
    {sizeof down, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0}, {.ifi_index = 1, .ifi_change = IFF_UP}};
  struct { struct nlmsghdr head; struct nlmsgerr error; } reply = {0};
  int netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  send(netlink, &down, sizeof down, 0);
  recv(netlink, &reply, sizeof reply, 0);
  errno = -reply.error.error;
  say("link-down", reply.error.error ? -1 : 0);
}

static void *flip(void *shared) {
  for (;;) {
    ((volatile int *)shared)[0] = AF_VSOCK;
    ((volatile int *)shared)[0] = AF_UNIX;
  }
  return 0;
}

// One thread changes the arguments while another's call is looked at.
static void race(int rounds) {
  static int shared[3] = {AF_UNIX, SOCK_STREAM, 0};
  pthread_t flipper;
  pthread_create(&flipper, 0, flip, shared);
  int made = 0, refused = 0, through = 0;
  for (int i = 0; i < rounds; i++) {
    int fd = multiplexed(1, shared), found = 0;
    socklen_t length = sizeof found;
    if (fd < 0) { refused += errno == EAFNOSUPPORT; continue; }
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &found, &length);
    made += found == AF_UNIX;
    through += found != AF_UNIX;
    close(fd);
  }
  printf("through %d\nall %d\nboth %d\n", through, made + refused == rounds, made && refused);
}

// Callers that die in the middle of it do no harm to the others.
static void kill_callers(int rounds) {
  for (int i = 0; i < rounds; i++) {
    pid_t child = fork();
    if (!child) for (;;) { int pair[2]; if (!socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) close(pair[0]), close(pair[1]); }
    usleep(200 * (i % 20));
    kill(child, SIGKILL);
    waitpid(child, 0, 0);
  }
  say("after", socket(AF_INET, SOCK_STREAM, 0));
}

static void ticking(int number) { (void)number; }

// Signals don't tear a call apart: no pair is half made.
static void interrupt(int rounds, int flags) {
  struct sigaction action = {.sa_handler = ticking, .sa_flags = flags};
  sigaction(SIGALRM, &action, 0);
  ualarm(300, 300);
  int bad = 0;
  for (int i = 0; i < rounds; i++) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) { bad += errno != EINTR || flags; continue; }
    close(pair[0]);
    close(pair[1]);
  }
  ualarm(0, 0);
  printf("bad %d\n", bad);
  printf("lowest %d\n", socket(AF_UNIX, SOCK_STREAM, 0));
}

static void try_nested(void) {
  say("hidden", prctl(PR_SET_DUMPABLE, 0) ? -1 : socket(AF_UNIX, SOCK_STREAM, 0));
  prctl(PR_SET_DUMPABLE, 1);
  say("userns", unshare(CLONE_NEWUSER));
  say("nested", socket(AF_INET, SOCK_STREAM, 0));
  say("nested-raw", socket(AF_INET, SOCK_RAW, IPPROTO_TCP));
  say("netns", unshare(CLONE_NEWNET));
  say("elsewhere", socket(AF_INET, SOCK_STREAM, 0));
}

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "";
  int rounds = argc > 2 ? atoi(argv[2]) : 1;
  if (!strcmp(name, "families")) try_families();
  else if (!strcmp(name, "flags")) try_flags();
  else if (!strcmp(name, "pointers")) try_pointers();
  else if (!strcmp(name, "work")) try_work();
  else if (!strcmp(name, "race")) race(rounds);
  else if (!strcmp(name, "kill")) kill_callers(rounds);
  else if (!strcmp(name, "interrupt")) interrupt(rounds, SA_RESTART);
  else if (!strcmp(name, "break")) interrupt(rounds, 0);
  else if (!strcmp(name, "nested")) try_nested();
  else if (!strcmp(name, "wait")) {
    say("before", socket(AF_UNIX, SOCK_STREAM, 0));
    while (access(argv[2], F_OK)) usleep(20000);
    say("after", socket(AF_UNIX, SOCK_STREAM, 0));
  }
  else return 2;
  return 0;
}
