// A kernel that NVRTC refuses.

// launchtax: op=gqa_decode grid=1 block=1
extern "C" __global__ void attention(scalar* out) {
    out[0] = nobody;
}
