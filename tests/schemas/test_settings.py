from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.errors import SettingsError
from schemas.settings import Section, differing_settings, load_settings, operational, result, result_settings


class ImageLike(Section):
    quality: int = result(90, "JPEG quality", ge=1, le=95)
    num_threads: int = operational(2, "threads", ge=1)


class PaceLike(Section):
    requests_per_second: float = operational(1.0, "1/s", gt=0)


class Settings(Section):
    image: ImageLike = ImageLike()
    pace: PaceLike = PaceLike()
    seed: int = result(0, "of every permutation")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def test_without_a_file_the_defaults_hold() -> None:
    assert load_settings(Settings) == Settings()


def test_the_file_overrides_the_defaults_and_set_overrides_the_file(config: Path) -> None:
    config.write_text("image: {quality: 80, num_threads: 4}\nseed: 3\n")
    settings = load_settings(Settings, config=config, sets=["image.quality=70", "pace.requests_per_second=0.5"])
    assert settings == Settings(
        image=ImageLike(quality=70, num_threads=4), pace=PaceLike(requests_per_second=0.5), seed=3
    )


def test_the_last_set_counts() -> None:
    assert load_settings(Settings, sets=["image.quality=1", "image.quality=2"]).image.quality == 2


def test_a_set_may_give_a_whole_section() -> None:
    assert load_settings(Settings, sets=["image={quality: 5}"]).image == ImageLike(quality=5)


def test_sections_of_other_modules_are_passed_by(config: Path) -> None:
    config.write_text("train: {steps: 10}\nimage: {quality: 80}\n")
    assert load_settings(Settings, config=config).image.quality == 80


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "image:\n", "image:\n#  quality: 80\nseed: 0\n"])
def test_an_empty_file_or_section_leaves_the_defaults(config: Path, text: str) -> None:
    config.write_text(text)
    assert load_settings(Settings, config=config) == Settings()


def test_an_unknown_section_is_named_with_the_known_ones(config: Path) -> None:
    config.write_text("imagee: {quality: 80}\n")
    with pytest.raises(SettingsError, match=r"unknown section 'imagee' in settings; known sections: .*image.*shards"):
        load_settings(Settings, config=config)


def test_an_unknown_key_is_named_with_its_siblings() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting image\.qualty; known here: num_threads, quality"):
        load_settings(Settings, sets=["image.qualty=80"])
    with pytest.raises(SettingsError, match=r"unknown section 'sed'"):
        load_settings(Settings, sets=["sed=80"])


@pytest.mark.parametrize("value", ["0", "96", "high", "1.5", "null"])
def test_a_value_out_of_range_is_named(value: str) -> None:
    with pytest.raises(SettingsError, match=r"setting image\.quality: .*, found "):
        load_settings(Settings, sets=[f"image.quality={value}"])


def test_all_mistakes_come_in_one_message() -> None:
    with pytest.raises(SettingsError, match=r"image\.quality.*; .*pace\.requests_per_second"):
        load_settings(Settings, sets=["image.quality=0", "pace.requests_per_second=0"])


@pytest.mark.parametrize("assignment", ["image.quality", "=3", ".quality=3", "image.=3", "image..quality=3"])
def test_a_set_of_another_form_is_refused(assignment: str) -> None:
    with pytest.raises(SettingsError, match=r"--set takes section\.key=value, found"):
        load_settings(Settings, sets=[assignment])


def test_a_set_below_a_value_is_refused() -> None:
    with pytest.raises(SettingsError, match="'quality' holds a value, not a section"):
        load_settings(Settings, sets=["image.quality=3", "image.quality.x=4"])


def test_a_set_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(SettingsError, match="is no YAML scalar, list or map"):
        load_settings(Settings, sets=["image.quality=[1"])


def test_a_file_that_cannot_be_read_is_named(config: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*settings\.yaml: No such file"):
        load_settings(Settings, config=config)
    for data in (b"image: [", b"\xff\xfe\xff", b"- image\n", b"image\n"):
        config.write_bytes(data)
        with pytest.raises(SettingsError, match=r"the settings file .*settings\.yaml"):
            load_settings(Settings, config=config)


def test_a_file_cannot_run_code(config: Path) -> None:
    config.write_text("image: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(SettingsError, match="is no YAML"):
        load_settings(Settings, config=config)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().seed = 1


def test_only_what_changes_the_result_is_kept_with_the_data() -> None:
    assert result_settings(Settings()) == {"image": {"quality": 90}, "seed": 0}
    assert result_settings(PaceLike()) == {}


def test_each_difference_is_named_with_both_values() -> None:
    ours = result_settings(load_settings(Settings, sets=["image.quality=80", "seed=1"]))
    theirs = result_settings(Settings())
    assert differing_settings(ours, theirs) == ["image.quality: 90 there, 80 asked for", "seed: 0 there, 1 asked for"]
    assert differing_settings(ours, ours) == []
    assert differing_settings({}, {"image": {"quality": 90}}) == ["image: {'quality': 90} there, None asked for"]
