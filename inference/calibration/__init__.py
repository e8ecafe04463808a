"""Whether engines are right: simulation-based calibration."""
