import threading

import pytest

from se_deploy.profiling import power


def sensor(root, rails, name="ina3221"):
    device = root / name
    folder = device / "hwmon" / "hwmon1"
    folder.mkdir(parents=True)
    (device / "name").write_text("ina3221\n" if name.startswith("ina") else "other\n")
    for channel, (rail, millivolts, milliamperes) in rails.items():
        (folder / f"in{channel}_label").write_text(f"{rail}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
    return folder


def test_the_modules_own_rail_is_its_power(tmp_path):
    sensor(tmp_path, {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 400), 3: ("NC", 0, 0)})
    assert power._ina3221(tmp_path)() == pytest.approx(6.0)


def test_without_it_the_rails_are_added_up(tmp_path):
    sensor(
        tmp_path,
        {
            1: ("VDD_GPU_SOC", 10000, 500),
            2: ("VDD_CPU_CV", 10000, 250),
            4: ("NC", 9, 9),
            7: ("sum of shunt", 1, 1),
        },
    )
    assert power._ina3221(tmp_path)() == pytest.approx(7.5)


def test_other_sensors_and_no_sensors_are_no_meter(tmp_path):
    sensor(tmp_path, {1: ("VDD_IN", 5000, 1200)}, name="lm75")
    assert power._ina3221(tmp_path) is None
    assert power._ina3221(tmp_path / "none") is None


def test_a_reading_that_fails_is_no_reading(tmp_path):
    folder = sensor(tmp_path, {1: ("VDD_IN", 5000, 1200)})
    read = power._ina3221(tmp_path)
    (folder / "in1_input").write_text("busy\n")
    assert read() is None


def test_power_is_the_energy_over_the_time():
    assert power.mean_w([(0.0, 10.0), (1.0, 20.0), (4.0, 20.0)]) == pytest.approx((15 + 60) / 4)
    assert power.mean_w([(5.0, 7.0)]) == 7.0
    assert power.mean_w([]) is None


def test_readings_are_taken_while_the_block_runs():
    readings, seen = iter(range(1_000_000)), threading.Event()

    def watts():
        reading = next(readings)
        if reading == 3:
            seen.set()
        return float(reading)

    with power.sampled(watts) as samples:
        assert seen.wait(30)
    times = [when for when, _ in samples]
    assert times == sorted(times)
    assert [watt for _, watt in samples] == [float(i) for i in range(len(samples))]
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(keep_sampling)")]


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        (
            "RAM 2/7 (lfb 1x4MB) CPU [1%@729] gpu@45C VDD_IN 5120mW/5000mW VDD_CPU_GPU_CV 480mW/400mW",
            5.12,
        ),
        ("GR3D_FREQ 99% VDD_GPU_SOC 4800mW/4000mW VDD_CPU_CV 1200mW/1100mW VIN_SYS_5V0 2000mW/1900mW", 8.0),
        ("RAM 1/3 POM_5V_IN 2345/2300 POM_5V_GPU 40/40 POM_5V_CPU 300/290", 2.345),
        ("RAM 1/3 CPU [1%@729]", None),
    ],
    ids=["Orin Nano", "AGX Orin", "JetPack 4", "no rails"],
)
def test_tegrastats_shows_the_modules_own_rail_or_all_of_them(line, watts):
    assert power.read_tegrastats(line) == (None if watts is None else pytest.approx(watts))


def test_tegrastats_is_read_where_sysfs_shows_nothing(tmp_path, monkeypatch):
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\nwhile :; do echo 'VDD_IN 4000mW/4000mW'; sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setattr(power, "_nvml", lambda: None)
    monkeypatch.setattr(power.shutil, "which", lambda _: str(program))
    with power.meter(tmp_path / "none") as read:
        assert read() == pytest.approx(4.0)
    monkeypatch.setattr(power.shutil, "which", lambda _: None)
    with power.meter(tmp_path / "none") as read:
        assert read is None
