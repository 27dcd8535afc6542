"""gemv on the SIMT executor."""

from inputs.helpers import randn


def gemv_inputs(batch, n_in, n_out, dtype):
    """x [batch, n_in], weight [n_out, n_in], bias [n_out], residual [batch, n_out]."""
    return (
        randn(batch, n_in, dtype=dtype),
        randn(n_out, n_in, dtype=dtype, seed=1, scale=n_in**-0.5),
        randn(n_out, dtype=dtype, seed=2),
        randn(batch, n_out, dtype=dtype, seed=3),
    )


def run_gemv(dev, inputs, dtype, offset=0, programmatic=False):
    """out of one launch; every tensor begins `offset` bytes past a multiple of 64."""
    x, weight, bias, residual = (dev.to(tensor, offset) for tensor in inputs)
    (batch, n_in), n_out = x.shape, weight.shape[0]
    out = dev.empty(batch, n_out, dtype=dtype, offset=offset)
    dev.launch(
        "gemv", programmatic, x=x, weight=weight, bias=bias, residual=residual, out=out, batch=batch, in_features=n_in,
        out_features=n_out, dtype=dtype,
    )  # fmt: skip
    dev.synchronize()
    return out.clone()
