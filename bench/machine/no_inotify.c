/* Preloaded on some of the bench's machines: whoever asks for an inotify(7) instance to keep is given a descriptor that
 * never has anything to read.
 *
 * Of instances a host has fs.inotify.max_user_instances, often 128, and each machine's init keeps three: for the time
 * zone's file, for its bus, and for control groups that became empty; dbus-daemon keeps one. Nothing that the bench
 * measures depends on those. Real ones are given to systemd's path_spec_watch (src/core/path.c), which waits by them for
 * the pid file of a unit of Type=forking, for some milliseconds: all that its library asks for after the first one, which
 * is for control groups. Where the host has none left at the moment, that waits for one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { DESCRIPTORS = 1024, TRIES = 300 };

static char fake[DESCRIPTORS];

static int wants_a_real_one(const void *caller)
{
    static int asked;
    Dl_info found;
    return dladdr(caller, &found) != 0 && strstr(found.dli_fname, "libsystemd-core") != NULL && asked++ > 0;
}

static int make(int flags, const void *caller)
{
    if (!wants_a_real_one(caller)) {
        int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (descriptor >= 0 && descriptor < DESCRIPTORS)
            fake[descriptor] = 1;
        return descriptor;
    }
    for (int i = 0;; i++) {
        int descriptor = (int)syscall(SYS_inotify_init1, flags);
        if (descriptor >= 0 && descriptor < DESCRIPTORS)
            fake[descriptor] = 0;
        if (descriptor >= 0 || errno != EMFILE || i == TRIES)
            return descriptor;
        usleep(10000);
    }
}

int inotify_init1(int flags)
{
    return make(flags, __builtin_return_address(0));
}

int inotify_init(void)
{
    return make(0, __builtin_return_address(0));
}

int inotify_add_watch(int descriptor, const char *path, unsigned mask)
{
    static int watches;
    if (descriptor >= 0 && descriptor < DESCRIPTORS && fake[descriptor])
        return ++watches;
    return (int)syscall(SYS_inotify_add_watch, descriptor, path, mask);
}

int inotify_rm_watch(int descriptor, int watch)
{
    if (descriptor >= 0 && descriptor < DESCRIPTORS && fake[descriptor])
        return 0;
    return (int)syscall(SYS_inotify_rm_watch, descriptor, watch);
}
