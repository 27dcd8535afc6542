"""In-kernel timestamps made up: launches whose every interval is known, as the records that they would leave."""

from collections.abc import Iterable, Sequence

import numpy as np

from pykernels.timestamps import MISSING, POINTS, RECORD

TICKS_PER_US = 2000


class Records:
    """Launches one after the other, in records of an SM clock of 2 GHz that begins anywhere, another on every SM."""

    def __init__(self, kernels: Sequence[str]) -> None:
        self.kernels = list(kernels)
        self._records: list[tuple] = []

    def launch(
        self,
        op: str,
        passed_us: Sequence[float | None],
        sms: Iterable[int],
        warps: Sequence[int] = (0, 15),
        late_us: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        """A block on each of `sms`, whose warps pass POINTS at `passed_us` (None: never), the last of `warps` all but
        the start `late_us` later. `rng` shuffles the launch's records."""
        sms = list(sms)
        mine = []
        for block, sm in enumerate(sms):
            begin = 10**12 * (sm + 1)
            for warp in warps:
                late = late_us if warp == warps[-1] else 0.0
                at = [
                    None if us is None else begin + round((us + (late if point else 0.0)) * TICKS_PER_US)
                    for point, us in enumerate(passed_us)
                ]
                ticks = [MISSING if passed is None else passed - at[0] for passed in at[1:]]
                end_ns = 5 * 10**9 + (at[-1] - begin) * 1000 // TICKS_PER_US
                mine.append((at[0], end_ns, ticks, self.kernels.index(op), block, len(sms), sm, warp))
        if rng is not None:
            rng.shuffle(mine)
        self._records += mine

    def array(self) -> np.ndarray:
        """All of them: RECORD."""
        return np.array(self._records, RECORD)


assert len(POINTS) == 8, "passed_us are eight"
