"""The specified bandwidth of a GPU: by its name, else by its memory bus and clock, and labelled so."""

import pynvml
import pytest
import torch

from bench.core import environment

CUDA = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """Sets the name, and what NVML says of bus and clock."""

    def set_(name: str, bits: int | None = None, mhz: int | None = None) -> None:
        def answer(value):
            if value is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value

        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(environment, "handle_of", lambda device: answer(bits))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryBusWidth", lambda handle: answer(bits))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetMaxClockInfo", lambda handle, kind: answer(mhz))

    return set_


@pytest.mark.parametrize(
    ("name", "gbs"),
    [
        ("NVIDIA H200", 4800), ("NVIDIA B200", 7672), ("NVIDIA GB200", 8000), ("NVIDIA A10", 600), ("NVIDIA L4", 300),
        ("NVIDIA GeForce RTX 5090", 1792), ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1597), ("NVIDIA Thor", 273),
    ],
)  # fmt: skip
def test_a_card_of_the_table(gpu, name, gbs):
    gpu(name, 8, 1)
    found, source = environment.spec_bandwidth(CUDA)
    assert found == gbs and "datasheet" in source


@pytest.mark.parametrize(
    ("name", "bits", "mhz", "gbs"),
    [
        ("NVIDIA RTX 9090", 512, 14001, 1792.1),
        ("NVIDIA H200 NVL", 6144, 3201, 4916.7),
        ("NVIDIA A10G", 384, 6251, 600.1),
    ],
)
def test_any_other_card_is_computed_and_labelled(gpu, name, bits, mhz, gbs):
    gpu(name, bits, mhz)
    found, source = environment.spec_bandwidth(CUDA)
    assert found == pytest.approx(gbs, abs=0.1)
    assert source == f"computed: {bits} bits at 2 x {mhz} MHz by NVML; not in the table of cards"


@pytest.mark.parametrize(("bits", "mhz"), [(None, None), (256, None), (256, 0)])
def test_where_nvml_does_not_say(gpu, bits, mhz):
    gpu("NVIDIA Something", bits, mhz)
    assert environment.spec_bandwidth(CUDA) == (None, "unknown for NVIDIA Something")
