/* Loaded with LD_PRELOAD: numbers every change that a process makes below given folders, and every mutating request
 * that it sends to a given port, and strikes at one of them: SIGKILL or SIGTERM before it, after it or in the midst of a
 * write; or the disk is full from there on. Nothing is counted or changed until fault_arm was called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { COUNT, KILL, TERM, FULL, ONCE, SHORT }; /* FULL: the error from there on; ONCE: only there */
enum when { BEFORE, AFTER, TORN };

static char folders[8][4096];
static int num_folders, action, when, error_number, port, log_fd = -1;
static long target;
static volatile long counted;
static volatile int armed;
static char putting[4096]; /* by descriptor: the request that is being sent changes something */

/* folders: separated by ':', "/" for all but /proc and /dev; point: from 1 on, 0: none; log: every point as "number operation path" */
void fault_arm(const char *paths, long point, int what, int at, int error, int to_port, const char *log) {
  num_folders = 0;
  while (*paths && num_folders < 8) {
    size_t length = strcspn(paths, ":");
    snprintf(folders[num_folders++], 4096, "%.*s", (int)length, paths);
    paths += length + (paths[length] == ':');
  }
  target = point, action = what, when = at, error_number = error, port = to_port, counted = 0;
  log_fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  armed = 1;
}

void fault_disarm(void) { armed = 0; }

static void *next(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

#define REAL(type, name, ...)                      \
  static type (*real)(__VA_ARGS__);                \
  if (!real) real = (type(*)(__VA_ARGS__))next(name)

static int inside(const char *path) {
  for (int i = 0; i < num_folders; i++) {
    if (!strcmp(folders[i], "/")) return *path == '/' && strncmp(path, "/proc/", 6) && strncmp(path, "/dev/", 5);
    size_t length = strlen(folders[i]);
    if (!strncmp(path, folders[i], length) && (path[length] == '/' || !path[length])) return 1;
  }
  return 0;
}

static int of_descriptor(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, 4095);
  path[length > 0 ? length : 0] = 0;
  return length > 0;
}

static void absolute(int folder, const char *name, char *path) {
  char start[4096] = "";
  if (*name == '/') {
    snprintf(path, 4096, "%s", name);
    return;
  }
  if (folder == AT_FDCWD) {
    if (syscall(SYS_getcwd, start, sizeof start) < 0) start[0] = 0;
  } else {
    of_descriptor(folder, start);
  }
  snprintf(path, 4096, "%.2000s/%.2000s", start, name);
}

static long count(const char *operation, const char *path) {
  long number = __atomic_add_fetch(&counted, 1, __ATOMIC_SEQ_CST);
  char line[4200];
  int length = snprintf(line, sizeof line, "%ld %s %s\n", number, operation, path);
  syscall(SYS_write, log_fd, line, (size_t)length);
  return number;
}

static void strike(void) { syscall(SYS_kill, getpid(), action == KILL ? SIGKILL : SIGTERM); }

/* A point's number, 0 for what is not counted. Strikes where that is to be before. */
static long enter(const char *operation, const char *path) {
  if (!armed || !inside(path)) return 0;
  long number = count(operation, path);
  int at_once = when == BEFORE || (when == TORN && strcmp(operation, "write")); /* nothing else can be torn */
  if (number == target && at_once && (action == KILL || action == TERM)) strike();
  return number;
}

static void leave(long number) {
  int kept = errno;
  if (number && number == target && when == AFTER && (action == KILL || action == TERM)) strike();
  errno = kept;
}

static int refused(long number) {
  if (!number || !target || !((action == FULL && number >= target) || (action == ONCE && number == target))) return 0;
  errno = error_number;
  return 1;
}

static int torn(long number) { return number && number == target && when == TORN && (action == KILL || action == TERM); }

static long enter_fd(const char *operation, int fd) {
  char path[4096];
  if (!armed || !of_descriptor(fd, path)) return 0;
  return enter(operation, path);
}

static long enter_at(const char *operation, int folder, const char *name) {
  char path[4096];
  if (!armed) return 0;
  absolute(folder, name, path);
  return enter(operation, path);
}

static ssize_t written(const char *operation, int fd, const void *data, size_t size, off_t offset, int placed) {
  REAL(ssize_t, "write", int, const void *, size_t);
  static ssize_t (*at)(int, const void *, size_t, off_t);
  if (!at) at = (ssize_t(*)(int, const void *, size_t, off_t))next("pwrite");
  long number = enter_fd(operation, fd);
  if (refused(number)) return -1;
  size_t half = size / 2;
  if (torn(number)) {
    ssize_t done = !half ? 0 : placed ? at(fd, data, half, offset) : real(fd, data, half);
    strike();
    if (half) return done; /* after SIGTERM: a short write */
  }
  if (number && number == target && action == SHORT && half) size = half;
  ssize_t done = placed ? at(fd, data, size, offset) : real(fd, data, size);
  leave(number);
  return done;
}

ssize_t write(int fd, const void *data, size_t size) { return written("write", fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return written("write", fd, data, size, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return written("write", fd, data, size, at, 1); }

#define BY_FD(type, name, operation, parameters, arguments, types) \
  type name parameters {                                           \
    REAL(type, #name, types);                                      \
    long number = enter_fd(operation, fd);                         \
    if (refused(number)) return -1;                                \
    type done = real arguments;                                    \
    leave(number);                                                 \
    return done;                                                   \
  }
#define COMMA ,

ssize_t writev(int fd, const struct iovec *parts, int count_) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  long number = enter_fd("write", fd);
  if (refused(number)) return -1;
  if (count_ > 0 && (torn(number) || (number && number == target && action == SHORT))) {
    struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2};
    ssize_t done = half.iov_len ? real(fd, &half, 1) : 0;
    if (torn(number)) strike();
    if (half.iov_len) return done;
  }
  ssize_t done = real(fd, parts, count_);
  leave(number);
  return done;
}

BY_FD(int, fsync, "fsync", (int fd), (fd), int)
BY_FD(int, fdatasync, "fsync", (int fd), (fd), int)
BY_FD(int, ftruncate, "truncate", (int fd, off_t size), (fd, size), int COMMA off_t)
BY_FD(int, ftruncate64, "truncate", (int fd, off_t size), (fd, size), int COMMA off_t)
BY_FD(ssize_t, sendfile, "write", (int fd, int from, off_t *offset, size_t size), (fd, from, offset, size),
      int COMMA int COMMA off_t * COMMA size_t)
BY_FD(ssize_t, sendfile64, "write", (int fd, int from, off_t *offset, size_t size), (fd, from, offset, size),
      int COMMA int COMMA off_t * COMMA size_t)

ssize_t copy_file_range(int from, off64_t *at, int fd, off64_t *offset, size_t size, unsigned flags) {
  REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
  long number = enter_fd("write", fd);
  if (refused(number)) return -1;
  ssize_t done = real(from, at, fd, offset, size, flags);
  leave(number);
  return done;
}

/* Removing is never refused: a full disk lets one remove. */
#define BY_NAME(name, operation, parameters, folder, path, arguments, types, refusable) \
  int name parameters {                                                                 \
    REAL(int, #name, types);                                                            \
    long number = enter_at(operation, folder, path);                                    \
    if (refusable && refused(number)) return -1;                                        \
    int done = real arguments;                                                          \
    leave(number);                                                                      \
    return done;                                                                        \
  }
#define TEXT const char *

BY_NAME(rename, "rename", (TEXT from, TEXT to), AT_FDCWD, to, (from, to), TEXT COMMA TEXT, 1)
BY_NAME(renameat, "rename", (int a, TEXT from, int b, TEXT to), b, to, (a, from, b, to), int COMMA TEXT COMMA int COMMA TEXT, 1)
BY_NAME(renameat2, "rename", (int a, TEXT from, int b, TEXT to, unsigned flags), b, to, (a, from, b, to, flags),
        int COMMA TEXT COMMA int COMMA TEXT COMMA unsigned, 1)
BY_NAME(link, "link", (TEXT from, TEXT to), AT_FDCWD, to, (from, to), TEXT COMMA TEXT, 1)
BY_NAME(linkat, "link", (int a, TEXT from, int b, TEXT to, int flags), b, to, (a, from, b, to, flags),
        int COMMA TEXT COMMA int COMMA TEXT COMMA int, 1)
BY_NAME(symlink, "link", (TEXT from, TEXT to), AT_FDCWD, to, (from, to), TEXT COMMA TEXT, 1)
BY_NAME(mkdir, "mkdir", (TEXT path, mode_t mode), AT_FDCWD, path, (path, mode), TEXT COMMA mode_t, 1)
BY_NAME(mkdirat, "mkdir", (int at, TEXT path, mode_t mode), at, path, (at, path, mode), int COMMA TEXT COMMA mode_t, 1)
BY_NAME(unlink, "unlink", (TEXT path), AT_FDCWD, path, (path), TEXT, 0)
BY_NAME(unlinkat, "unlink", (int at, TEXT path, int flags), at, path, (at, path, flags), int COMMA TEXT COMMA int, 0)
BY_NAME(rmdir, "unlink", (TEXT path), AT_FDCWD, path, (path), TEXT, 0)

/* Only what may make a file is counted. */
static int makes(int flags) { return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE; }

#define OPENING(name, parameters, folder, call, types)                            \
  int name parameters {                                                           \
    REAL(int, #name, types);                                                      \
    mode_t mode = 0;                                                              \
    if (makes(flags)) {                                                           \
      va_list rest;                                                               \
      va_start(rest, flags);                                                      \
      mode = va_arg(rest, mode_t);                                                \
      va_end(rest);                                                               \
    }                                                                             \
    long number = makes(flags) ? enter_at("open", folder, path) : 0;              \
    if (refused(number)) return -1;                                               \
    int done = real call;                                                         \
    leave(number);                                                                \
    return done;                                                                  \
  }

OPENING(open, (TEXT path, int flags, ...), AT_FDCWD, (path, flags, mode), TEXT COMMA int COMMA ...)
OPENING(open64, (TEXT path, int flags, ...), AT_FDCWD, (path, flags, mode), TEXT COMMA int COMMA ...)
OPENING(openat, (int at, TEXT path, int flags, ...), at, (at, path, flags, mode), int COMMA TEXT COMMA int COMMA ...)
OPENING(openat64, (int at, TEXT path, int flags, ...), at, (at, path, flags, mode), int COMMA TEXT COMMA int COMMA ...)

/* Requests that change something: their heads and all that is sent after them on the same connection. */
static long enter_put(int fd, const char *data, size_t size) {
  struct sockaddr_storage peer;
  socklen_t length = sizeof peer;
  if (!armed || !port || fd < 0 || fd >= (int)sizeof putting) return 0;
  if (getpeername(fd, (struct sockaddr *)&peer, &length) || peer.ss_family != AF_INET) return 0;
  if (ntohs(((struct sockaddr_in *)&peer)->sin_port) != port) return 0;
  static const char *changing[] = {"PUT /", "POST /", "DELETE /"}, *reading[] = {"GET /", "HEAD /"};
  for (int i = 0; i < 2; i++)
    if (size > strlen(reading[i]) && !memcmp(data, reading[i], strlen(reading[i]))) putting[fd] = 0;
  for (int i = 0; i < 3; i++)
    if (size > strlen(changing[i]) && !memcmp(data, changing[i], strlen(changing[i]))) putting[fd] = 1;
  if (!putting[fd]) return 0;
  char head[128];
  size_t shown = 0;
  while (shown < sizeof head - 1 && shown < size && data[shown] > 31 && data[shown] < 127) shown++;
  snprintf(head, sizeof head, "%.*s", (int)shown, data);
  long number = count("put", head);
  if (number == target && when == BEFORE && (action == KILL || action == TERM)) strike();
  return number;
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
  REAL(ssize_t, "send", int, const void *, size_t, int);
  long number = enter_put(fd, data, size);
  if (torn(number)) {
    ssize_t done = size / 2 ? real(fd, data, size / 2, flags) : 0;
    strike();
    if (size / 2) return done;
  }
  ssize_t done = real(fd, data, size, flags);
  leave(number);
  return done;
}
