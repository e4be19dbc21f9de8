// Gives the process that preloads it a quota: the files below QUOTA_FOLDER take QUOTA_BYTES bytes together.
// What exceeds it gets EDQUOT: from write(), or with QUOTA_LATE from fsync() and close(), as on network file systems.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

static __thread long long used;

static int add_file(const char *path, const struct stat *info, int kind, struct FTW *place) {
  (void)path, (void)place;
  if (kind == FTW_F) used += info->st_size / info->st_nlink; // a file with two names counts once
  return 0;
}

// Bytes that a file may still grow by.
static long long room(int fd) {
  char link[64], path[PATH_MAX];
  const char *folder = getenv("QUOTA_FOLDER");
  int kept = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length > 0 && folder && strncmp(path, folder, strlen(folder)) == 0) {
    used = 0;
    nftw(folder, add_file, 16, FTW_PHYS);
    errno = kept;
    return atoll(getenv("QUOTA_BYTES")) - used;
  }
  errno = kept;
  return LLONG_MAX;
}

static int is_late(void) { return getenv("QUOTA_LATE") != NULL; }

static int refuse(void) {
  errno = EDQUOT;
  return -1;
}

ssize_t write(int fd, const void *data, size_t size) {
  long long left = is_late() ? LLONG_MAX : room(fd);
  if (size && left <= 0) return refuse();
  return NEXT(write)(fd, data, (long long)size < left ? size : (size_t)left);
}

int fsync(int fd) { return is_late() && room(fd) < 0 ? refuse() : NEXT(fsync)(fd); }

int close(int fd) {
  int writes = (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
  int exceeds = is_late() && writes && room(fd) < 0;
  int result = NEXT(close)(fd);
  return exceeds ? refuse() : result;
}
