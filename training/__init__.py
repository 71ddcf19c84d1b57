"""The offline package: data → long-tail profile → loss → loop → calibration → scores → export."""
