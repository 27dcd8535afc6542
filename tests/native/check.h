// A check that says where it failed and is counted; the program exits with failed().
#pragma once

#include <cstdio>

namespace pykernels::test {

inline int failures = 0;

inline int failed() {
    std::printf("%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}

}  // namespace pykernels::test

#define CHECK(condition, ...)                                           \
    do {                                                                \
        if (!(condition)) {                                             \
            ++pykernels::test::failures;                                \
            std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::printf(__VA_ARGS__);                                   \
            std::printf("\n");                                          \
        }                                                               \
    } while (false)
