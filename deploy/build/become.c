/* $(become COMMAND): GNU make turns into COMMAND, which then has make's process id and hears its signals itself.
 *
 * Why: a make that is signalled while a recipe runs waits for the recipe and then dies of the same signal, whatever the
 * recipe answered. `make run` is meant to be stopped by a signal and to end with 0.
 */
#include <stdio.h>
#include <unistd.h>

/* Part of gnumake.h, which few systems install. */
extern void gmk_add_function(const char *name, char *(*function)(const char *, unsigned, char **), unsigned min_args,
                             unsigned max_args, unsigned flags);

/* GNU make asks for this symbol: this file may be used under any licence, the GPL among them. */
int plugin_is_GPL_compatible;

static char *become(const char *name, unsigned argc, char **argv) {
    (void)name;
    (void)argc;
    fflush(NULL);
    execl("/bin/sh", "sh", "-c", argv[0], (char *)NULL);
    return NULL; /* not possible: the recipe's own line runs instead */
}

int become_gmk_setup(void) {
    gmk_add_function("become", become, 1, 1, 0);
    return 1;
}
