"""Writes faults.csv: sensor readings of machines, nearly all sound, a few with a fault.

The numbers are drawn from a seed: 2,000 rows of sound machines, 200 of worn bearings and 40 of
broken gears.
"""

from pathlib import Path

import numpy as np

COUNTS = {"sound": 2000, "bearing": 200, "gear": 40}
SENSORS = ("vibration", "temperature", "current", "noise")
CENTRES = {"sound": (0, 0, 0, 0), "bearing": (1.6, 0.4, 0, 1.2), "gear": (1.2, 0, 1.6, 0.4)}

random = np.random.default_rng(0)
lines = [",".join([*SENSORS, "fault"])]
for name, count in COUNTS.items():
    rows = random.normal(CENTRES[name], 1.0, (count, len(SENSORS)))
    lines += [",".join([*(f"{value:.3f}" for value in row), name]) for row in rows]
Path("faults.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
print(f"wrote faults.csv: {sum(COUNTS.values())} rows")
