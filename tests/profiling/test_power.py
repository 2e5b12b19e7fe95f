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
