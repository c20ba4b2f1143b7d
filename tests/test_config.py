"""Configuration: presets, files and flags give the settings that they say; everything else is one clear sentence."""

import json

import pytest

from star.config import PRESETS, RunConfig, describe, diff, load_config
from star.errors import UserError
from star.genome import EXPORTABLE_CLASSES
from star.search.spaces import make_baselines, make_space


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_legal_and_survive_json(preset):
    config = load_config(preset)
    assert config.preset == preset
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    space = make_space(config)
    assert len(make_baselines(space, config)) == len(config.search.baselines)


def test_laptop_is_the_default_and_the_main_job():
    config = load_config()
    assert config.preset == "laptop" and config.search.population >= 8 and config.search.generations >= 5
    assert config.candidates >= 40 and len(config.search.baselines) == 2
    assert config.objectives.names == ("bpb", "parameters", "cache")


def test_a_machine_with_a_gpu_has_a_default_for_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = load_config()
    assert config.preset == "gpu-quick" and config.candidates >= 200 and config.training.tokens == 10_000_000
    assert load_config(overrides={"training.device": "cpu"}).preset == "laptop"


def test_overrides_come_as_values_or_as_text():
    config = load_config(
        "smoke",
        overrides={
            "seed": "7",
            "search.population": 6,
            "search.crossover_inside": "true",
            "search.mutation_probability": "0.2",
            "space.d_models": "64, 128",
            "search.baselines": "",
            "objectives.max_parameters": "1e6",
            "training.learning_rate": "1e-3",
            "training.betas": [0.9, 0.95],
        },
    )
    assert (config.seed, config.search.population, config.search.crossover_inside) == (7, 6, True)
    assert (config.search.mutation_probability, config.space.d_models, config.search.baselines) == (0.2, (64, 128), ())
    assert (config.objectives.max_parameters, config.training.learning_rate) == (1_000_000, 1e-3)
    assert config.training.betas == (0.9, 0.95)
    assert load_config(overrides={"seed": str(2**62 + 1)}).seed == 2**62 + 1, "integers stay integers"


def test_file_then_overrides(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('preset = "smoke"\nseed = 3\n[search]\npopulation = 5\ngenerations = 2\n')
    config = load_config(file=path, overrides={"search.population": 6})
    assert (config.preset, config.seed, config.search.population, config.search.generations) == ("smoke", 3, 6, 2)
    assert load_config("laptop", file=path).space.slots == RunConfig().space.slots, "the flag wins over the file"


def test_base_is_a_stored_configuration():
    stored = load_config("smoke", overrides={"seed": 5})
    assert load_config(base=stored) == stored
    assert load_config(base=stored, overrides={"engine.workers": 3}).search == stored.search
    assert load_config("smoke", base=stored).seed == 0, "a preset named now counts"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"serch.population": 3}, "there is no setting 'serch.population'; did you mean 'search.population'"),
        ({"populaton": 3}, "did you mean 'search.population'"),
        ({"learning_rate": 3}, "did you mean 'training.learning_rate'"),
        ({"search.population": 1}, "search.population is 1; it must be from 2 to 100000"),
        ({"search.population": "many"}, "search.population is 'many'; it must be a whole number"),
        ({"search.population": 2.5}, "search.population is 2.5; it must be a whole number"),
        ({"search.population": True}, "search.population is True; it must be a whole number"),
        ({"search.mutation_probability": 1.5}, "search.mutation_probability is 1.5; it must be from 0 to 1"),
        ({"search.mutation_probability": "nan"}, "search.mutation_probability is 'nan'; it must be a finite number"),
        ({"search.crossover_inside": "maybe"}, "search.crossover_inside is 'maybe'; it must be true or false"),
        ({"engine.kind": "cloud"}, "engine.kind is 'cloud'; it must be one of pool, inprocess"),
        ({"seed": -1}, "seed is -1; it must be from 0"),
        ({"space.d_models": (64, 0)}, "space.d_models is 0; it must be at least 1"),
        ({"training.tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"data.corpus": 3}, "data.corpus is 3; it must be text"),
        ({"search": 3}, "there is no setting 'search'"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(overrides, message):
    with pytest.raises(UserError) as error:
        load_config(overrides=overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_preset_and_bad_files(tmp_path):
    with pytest.raises(UserError, match="there is no preset 'smok'; did you mean 'smoke'"):
        load_config("smok")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(file=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 3")
    with pytest.raises(UserError, match="not valid TOML"):
        load_config(file=tmp_path / "bad.toml")


def test_diff_names_what_decides_results_and_not_what_may_change():
    a = load_config("smoke")
    b = load_config("laptop", overrides={"engine.workers": 3})
    assert diff(a, a) == []
    keys = [key for key, _, _ in diff(a, b)]
    assert "training.tokens" in keys and "engine.workers" not in keys and "search.generations" not in keys
    assert "engine.workers" in [key for key, _, _ in diff(a, b, resumable=True)]


def test_every_setting_is_documented():
    rows = describe()
    assert all(row["doc"] for row in rows if not row["key"].startswith("training."))
    assert len({row["key"] for row in rows}) == len(rows) > 40


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", float("inf"), float("nan")])
def test_no_setting_is_infinite_or_not_a_number(value):
    """Of every real-valued and whole-numbered setting, single or in a list."""
    for row in describe():
        default = row["default"][0] if isinstance(row["default"], tuple) and row["default"] else row["default"]
        if isinstance(default, int | float) and not isinstance(default, bool):
            with pytest.raises(UserError, match=f"^{row['key'].replace('.', '[.]')} is .*; it must be"):
                load_config("smoke", overrides={row["key"]: value})


def test_numbers_are_written_in_ascii_digits():
    with pytest.raises(UserError, match="in the digits 0 to 9"):
        load_config("smoke", overrides={"search.population": "٢"})


def test_a_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf[search]\npopulation = 6\n")
    assert load_config("smoke", tmp_path / "c.toml").search.population == 6


def test_exportable_classes_are_named_by_one_word():
    space = load_config(overrides={"space.classes": "exportable", "space.sharing": "true"}).space
    assert space.classes == EXPORTABLE_CLASSES and not space.sharing and space.norms == (1,)
