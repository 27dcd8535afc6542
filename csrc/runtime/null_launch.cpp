#include "runtime/null_launch.h"

#include <exception>

#include "runtime/program.h"

int pykernels_null_launch(int cuda_device, void* stream) {
    try {
        pykernels::launch(pykernels::NullParams{}, {cuda_device, stream, false});
    } catch (const std::exception&) {
        return 1;
    }
    return 0;
}
