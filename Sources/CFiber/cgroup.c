// SPDX-License-Identifier: Apache-2.0

// Computes how many CPUs the control groups of this process allow: the least of all limits from its own group up to the top of the mount,
// in either version of the interface.
//
//   v2 (one hierarchy)         cpu.max               "QUOTA PERIOD" in microseconds, or "max PERIOD"
//   v1 (one per controller)    cpu.cfs_quota_us      -1 for no limit
//                              cpu.cfs_period_us
//
// /proc/self/cgroup names the group in each hierarchy. /proc/self/mountinfo shows where a hierarchy is mounted, and from which of its
// groups on. In a container the group's path may lie outside the mount; then only the mounted part can be examined, and its top is the
// container's own group. In hybrid mode both versions are mounted, and the controller belongs to one of them, so both are examined.
//
// Any thread. A file that cannot be read means no limit.
#define _GNU_SOURCE
#include "cfiber_thread.h"
#include "number.h"
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Reads the first line of a file of a group; returns false when the file is missing, or its path is too long.
static int read_line(char *text, int size, const char *root, const char *mount, const char *group, const char *name) {
  char path[3 * PATH_MAX];
  if (snprintf(path, sizeof path, "%s%s%s/%s", root, mount, group, name) >= (int)sizeof path) return 0;
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  int known = fgets(text, size, file) != NULL;
  fclose(file);
  return known;
}

static int cpus(long quota, long period) {
  if (quota <= 0 || period <= 0) return INT_MAX;
  long count = quota / period + (quota % period != 0);
  return count > INT_MAX ? INT_MAX : (int)count;
}

static int limit_of(int version, const char *root, const char *mount, const char *group) {
  char text[128];
  const char *rest = text;
  long quota, period;
  if (version == 2) {
    if (!read_line(text, sizeof text, root, mount, group, "cpu.max")) return INT_MAX;
    return parse_number(&rest, &quota) && parse_number(&rest, &period) ? cpus(quota, period) : INT_MAX;
  }
  if (!read_line(text, sizeof text, root, mount, group, "cpu.cfs_quota_us") || !parse_number(&rest, &quota)) return INT_MAX;
  rest = text;
  if (!read_line(text, sizeof text, root, mount, group, "cpu.cfs_period_us") || !parse_number(&rest, &period)) return INT_MAX;
  return cpus(quota, period);
}

// Returns the least of the group's own limit and the limits of its ancestors, up to the top of the mount. Shortens `group` as it proceeds.
static int least_limit(int version, const char *root, const char *mount, char *group) {
  int least = INT_MAX;
  while (1) {
    int limit = limit_of(version, root, mount, group);
    if (limit < least) least = limit;
    char *end = strrchr(group, '/');
    if (end == NULL) return least;
    *end = 0;
  }
}

static int has_word(const char *list, const char *word) {
  size_t length = strlen(word);
  for (const char *at = list; (at = strstr(at, word)) != NULL; at += length)
    if ((at == list || at[-1] == ',') && (at[length] == 0 || at[length] == ',')) return 1;
  return 0;
}

// Finds the group of this process in the hierarchy of a version, with its leading slash; returns false when there is no such group.
static int find_group(int version, const char *root, char *group, size_t size) {
  char path[PATH_MAX], *line = NULL;
  size_t room = 0;
  int found = 0;
  snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
  FILE *file = fopen(path, "re");
  // HIERARCHY:CONTROLLER,CONTROLLER:/PATH, and 0::/PATH for version 2. Only the path may hold further colons.
  while (file != NULL && !found && getline(&line, &room, file) > 0) {
    line[strcspn(line, "\n")] = 0;
    char *controllers = strchr(line, ':'), *place = controllers == NULL ? NULL : strchr(controllers + 1, ':');
    if (place == NULL) continue;
    *controllers++ = 0;
    *place++ = 0;
    int fits = version == 2 ? strcmp(line, "0") == 0 && *controllers == 0 : has_word(controllers, "cpu");
    if (!fits || strlen(place) >= size) continue;
    strcpy(group, place);
    found = 1;
  }
  free(line);
  if (file != NULL) fclose(file);
  return found;
}

// Spaces and similar characters are written in octal: \040.
static void unescape(char *text) {
  char *to = text;
  for (const char *from = text; *from; to++) {
    int is_octal = from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' && from[3] >= '0' && from[3] <= '7';
    *to = is_octal ? (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0')) : *from;
    from += is_octal ? 4 : 1;
  }
  *to = 0;
}

typedef struct mount {
  char *place;  // the mount point
  char *top;    // the group that is mounted there
} mount;

// Parses a line of mountinfo, in place; returns false unless it mounts the hierarchy of that version with the CPU controller.
//
//     36 35 0:31 /TOP /PLACE rw,nosuid shared:7 - cgroup cgroup rw,cpu,cpuacct
static int parse_mount(int version, char *line, mount *result) {
  line[strcspn(line, "\n")] = 0;
  char *type = strstr(line, " - ");
  if (type == NULL) return 0;
  *type = 0;
  type += strlen(" - ");
  char *rest = type, *options = NULL;
  strsep(&rest, " ");
  if (rest != NULL && strsep(&rest, " ") != NULL) options = rest;
  if (version == 2 ? strcmp(type, "cgroup2") != 0 : strcmp(type, "cgroup") != 0 || options == NULL || !has_word(options, "cpu")) return 0;
  char *fields = line;
  for (int i = 0; i < 3; i++)
    if (strsep(&fields, " ") == NULL) return 0;
  result->top = strsep(&fields, " ");
  result->place = strsep(&fields, " ");
  if (result->top == NULL || result->place == NULL) return 0;
  unescape(result->top);
  unescape(result->place);
  return 1;
}

// Returns the part of a group's path that lies below the mount, NULL for a group outside it.
static const char *below(const char *group, const char *top) {
  // The path is relative to the root of the process's cgroup namespace, so the group is outside it.
  if (strncmp(group, "/..", 3) == 0) return NULL;
  size_t length = strcmp(top, "/") == 0 ? 0 : strlen(top);
  if (strncmp(group, top, length) != 0 || (group[length] != '/' && group[length] != 0)) return NULL;
  return strcmp(group + length, "/") == 0 ? "" : group + length;
}

static int quota_of(int version, const char *root) {
  char path[PATH_MAX], group[PATH_MAX], copy[PATH_MAX], *line = NULL;
  if (!find_group(version, root, group, sizeof group)) return INT_MAX;
  size_t room = 0;
  // The mounts that hold the group decide; if none holds it, the first of the others does.
  int inside = INT_MAX, outside = INT_MAX, holds_group = 0, is_mounted = 0;
  snprintf(path, sizeof path, "%s/proc/self/mountinfo", root);
  FILE *file = fopen(path, "re");
  while (file != NULL && getline(&line, &room, file) > 0) {
    mount mount;
    if (!parse_mount(version, line, &mount)) continue;
    const char *rest = below(group, mount.top);
    strcpy(copy, rest != NULL ? rest : "");
    int limit = least_limit(version, root, mount.place, copy);
    if (rest != NULL) {
      if (limit < inside) inside = limit;
      holds_group = 1;
    } else if (!is_mounted) {
      outside = limit;
    }
    is_mounted = 1;
  }
  free(line);
  if (file != NULL) fclose(file);
  if (is_mounted) return holds_group ? inside : outside;
  // A sandbox may hide the mounts; then the usual places are tried.
  static const char *const places[2][2] = {{"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"}, {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}};
  const char *rest = below(group, "/");
  for (int i = 0; i < 2; i++) {
    strcpy(copy, rest != NULL ? rest : "");
    int limit = least_limit(version, root, places[version - 1][i], copy);
    if (limit < inside) inside = limit;
  }
  return inside;
}

int cfiber_cpu_quota_below(const char *root) {
  int one = quota_of(1, root), two = quota_of(2, root);
  return one < two ? one : two;
}

int cfiber_cpu_quota(void) { return cfiber_cpu_quota_below(""); }
