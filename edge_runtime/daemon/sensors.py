"""Temperatures and power from Linux's sysfs, memory of this process from procfs.

Sources: Documentation/ABI/testing/sysfs-class-thermal (millidegrees Celsius), Documentation/hwmon/sysfs-interface
(power in microwatts; millivolts and milliamperes for the INA3221 of Jetson boards, which reports no power).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys")


@dataclass(frozen=True)
class SensorReading:
    """The value of one sensor, in degrees Celsius or watts, and its name."""

    sensor: str
    value: float


def temperatures(sysfs: Path = SYSFS) -> list[SensorReading]:
    """Thermal zones in degrees Celsius; empty where there is none."""
    readings = []
    for zone in sorted((sysfs / "class" / "thermal").glob("thermal_zone*")):
        value = _number(zone / "temp")
        if value is not None:
            readings.append(SensorReading(_text(zone / "type") or zone.name, value / 1e3))
    return readings


def powers(sysfs: Path = SYSFS) -> list[SensorReading]:
    """Power rails in watts; empty where there is none."""
    readings = []
    for monitor in sorted((sysfs / "class" / "hwmon").glob("hwmon*")):
        name = _text(monitor / "name") or monitor.name
        for file in sorted(monitor.glob("power*_input")):
            value = _number(file)
            if value is not None:
                readings.append(SensorReading(f"{name} {_text(_beside(file, 'label')) or file.name[:-6]}", value / 1e6))
        for file in sorted(monitor.glob("curr*_input")):
            volts = file.with_name(file.name.replace("curr", "in"))
            millivolts, milliamperes = _number(volts), _number(file)
            label = _text(_beside(volts, "label"))
            if millivolts is not None and milliamperes is not None and label:
                readings.append(SensorReading(f"{name} {label}", millivolts * milliamperes / 1e6))
    return readings


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name.replace("_input", f"_{suffix}"))


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(file: Path) -> float | None:
    # Reading a sensor of a suspended device fails: it is omitted, not reported as 0.
    try:
        return float(_text(file))
    except ValueError:
        return None
